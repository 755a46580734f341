// Whether the server has the demos. The development server answers with `true` in place of this file.

export const hasDemos = false;
