// The same as an ES module: import { install } from "/static/fanfare/resume.mjs";
import "./resume.js";

export const { install } = globalThis.FanfareResume;
export default globalThis.FanfareResume;
