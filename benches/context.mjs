// Milliseconds per token at growing lengths of context: runs `mgm bench --gguf` at several lengths and writes an SVG.
//
//     node benches/context.mjs MGM FILE.gguf OUT.svg [LENGTH...]     one JSON object on standard output
//
// The straight line is the least-squares fit: a constant cost per token, and the cost of each position of keys and values.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";

const [mgm, file, out, ...rest] = process.argv.slice(2);
const lengths = rest.length > 0 ? rest.map(Number) : [16, 512, 1024, 2048, 3072, 4064];
const STEPS = 32;

let adapter = "";
const points = lengths.map((length) => {
  const text = execFileSync(mgm, ["bench", "--gguf", file, "--prefill", length, "--decode", STEPS, "--runs", 1, "--json"], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  const report = JSON.parse(text);
  adapter = report.adapter;
  // The first step is the last position of the prompt. The median is robust against other load on the machine.
  const steps = report.step_ms.slice(1).sort((a, b) => a - b);
  const point = { length: length + STEPS / 2, ms: steps[Math.floor(steps.length / 2)], least_ms: steps[0] };
  console.error(`${point.length} positions: ${point.ms.toFixed(1)} ms a token, ${point.least_ms.toFixed(1)} at least`);
  return point;
});

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const [x, y] = [mean(points.map(({ length }) => length)), mean(points.map(({ least_ms }) => least_ms))];
const slope =
  points.reduce((sum, { length, least_ms }) => sum + (length - x) * (least_ms - y), 0) /
  points.reduce((sum, { length }) => sum + (length - x) ** 2, 0);
const base = y - slope * x;

const [width, height, left, bottom] = [640, 360, 60, 50];
const most = { x: Math.max(...lengths) + STEPS, y: 1.2 * Math.max(...points.map(({ ms }) => ms)) };
const at = (length, ms) => [
  left + (length / most.x) * (width - left - 20),
  height - bottom - (ms / most.y) * (height - bottom - 40),
];
const place = (length, ms) => at(length, ms).map((value) => value.toFixed(1)).join(",");
const label = (length, ms, text, anchor, dx, dy) => {
  const [px, py] = at(length, ms);
  return `<text x="${(px + dx).toFixed(1)}" y="${(py + dy).toFixed(1)}" text-anchor="${anchor}">${text}</text>`;
};
const round = (most) => 10 ** Math.floor(Math.log10(most / 2)) * (most / 10 ** Math.floor(Math.log10(most / 2)) > 8 ? 2 : 1);
const ticks = (most) => Array.from({ length: Math.floor(most / round(most)) + 1 }, (_, i) => i * round(most));
const dots = (key, fill) =>
  points.map((point) => `<circle r="4" fill="${fill}" cx="${place(point.length, point[key]).replace(",", '" cy="')}"/>`).join("");
const escape = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
const lines = [
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
  `<rect width="${width}" height="${height}" fill="white"/>`,
  `<text x="${left}" y="20">Milliseconds a token, ${escape(file.split("/").at(-1))} on ${escape(adapter)}</text>`,
  `<polyline fill="none" stroke="black" points="${place(0, most.y)} ${place(0, 0)} ${place(most.x, 0)}"/>`,
  ...ticks(most.x).map((tick) => label(tick, 0, tick, "middle", 0, 18)),
  ...ticks(most.y).map((tick) => label(0, tick, tick, "end", -6, 4)),
  label(most.x / 2, 0, "positions in the cache", "middle", 0, 38),
  `<polyline fill="none" stroke="#888" points="${place(0, base)} ${place(most.x, base + slope * most.x)}"/>`,
  dots("ms", "#9bd"),
  dots("least_ms", "#036"),
  label(most.x, most.y, `dark: the fastest of ${STEPS} steps, light: their median`, "end", 0, 12),
  label(most.x, most.y, `line: ${base.toFixed(1)} ms + ${(slope * 1000).toFixed(2)} µs a position`, "end", 0, 28),
  "</svg>",
];
writeFileSync(out, `${lines.join("\n")}\n`);
console.log(JSON.stringify({ file, adapter, points, base_ms: base, us_per_position: slope * 1000 }));
