// Whether the server has the inspector. A server that has it answers with another value in place of this file.

export const hasInspector = false;
