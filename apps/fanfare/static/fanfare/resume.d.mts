// Exact resume for pusher-js 8 and later. For resume.mjs.

export * from "./resume.js";

declare const FanfareResume: { install: typeof import("./resume.js").install };
export default FanfareResume;
