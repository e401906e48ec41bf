// The charts of an hour, in the colours of the admin's theme.
import uPlot from "../vendor/uplot/uPlot.esm.js";
import { el } from "./dom.js";

const HEIGHT = 150;
const LEAST_S = 600;
const STROKES = ["#2f7fb5", "#c77f12", "#8d5bb0"]; // 3:1 on the light and on the dark background

/** The range of the time axis: that of the values, and ten minutes at least. */
function recent(_, first) {
  const now = Date.now() / 1000;
  return [Math.min(first ?? now, now - LEAST_S), now];
}

/** Hours and minutes: the charts are of the last hour. */
const minute = (time) => new Date(time * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

/** A chart of one or more series over Unix times. `format`: of its values. */
export class Chart {
  constructor(parent, title, labels, format) {
    const place = el("div");
    this.figure = el("figure", {}, el("figcaption", {}, title), place);
    parent.append(this.figure);
    const theme = getComputedStyle(document.getElementById("console")); // live: the admin has a button for its theme
    const ink = () => theme.getPropertyValue("--body-quiet-color").trim() || "#666";
    const line = () => theme.getPropertyValue("--hairline-color").trim() || "#ddd";
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px sans-serif" };
    this.plot = new uPlot(
      {
        width: 320,
        height: HEIGHT,
        cursor: { y: false },
        legend: { live: true },
        scales: { x: { range: recent }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
        axes: [{ ...axis, values: (_, times) => times.map(minute) }, { ...axis, size: 62, values: (_, values) => values.map(format) }],
        series: [
          { label: "Time", value: (_, time) => (time ? new Date(time * 1000).toLocaleTimeString("en-GB") : "–") },
          ...labels.map((label, index) => ({
            label,
            stroke: STROKES[index],
            width: 2,
            points: { show: false },
            value: (_, value) => (value === null || value === undefined ? "–" : format(value)),
          })),
        ],
      },
      [[], ...labels.map(() => [])],
      place,
    );
    this.plot.over.addEventListener("mouseleave", () => this.#showNewest());
    new MutationObserver(() => this.plot.redraw(false)).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    new ResizeObserver(() => {
      const width = Math.max(200, place.clientWidth);
      if (width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
    }).observe(place);
  }

  show(times, ...series) {
    this.plot.setData([times, ...series]);
    if (this.plot.cursor.left < 0) this.#showNewest();
  }

  /** Without a pointer on the chart, its legend has the newest values. */
  #showNewest() {
    // After the plot's own update, which empties the legend.
    setTimeout(() => this.plot.setLegend({ idx: this.plot.data[0].length - 1 }));
  }
}
