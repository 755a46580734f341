// Whether the server has the demos, and the channels to which the playground subscribes at once. The development server
// answers with other values in place of this file.

export const hasDemos = false;
export const firstChannels = [];
