// Format numbers for the page. Every value that is not a number becomes a dash.

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function scaled(value, units) {
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return Number(value.toPrecision(3)) + units[unit];
}

// 3.6M, 1.2B
export const count = (value) => (isNumber(value) ? scaled(value, ["", "k", "M", "B", "T"]) : "–");

// 4.1P: FLOPs are shown with SI prefixes
export const flops = (value) => (isNumber(value) ? scaled(value, ["", "k", "M", "G", "T", "P", "E", "Z"]) : "–");

// 12,000
export const whole = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en-US") : "–");

export const fixed = (value, digits) => (isNumber(value) ? value.toFixed(digits) : "–");

// 0.9132, 12.4, 3e-4
export function short(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  return size < 1e-3 || size >= 1e6 ? value.toExponential(2).replace(/\.?0+e\+?/, "e") : String(Number(value.toPrecision(4)));
}

// 0.9130, 12.40: the zeros at the end of a measured value are kept, so that it is as exact as those beside it
export function measured(value) {
  const isShort = !isNumber(value) || Number.isInteger(value) || Math.abs(value) < 1e-3 || Math.abs(value) >= 1000;
  return isShort ? short(value) : value.toPrecision(4);
}

export const percent = (share) => (isNumber(share) ? (100 * share).toFixed(1) + "%" : "–");

// 1:05, 2:03:04, 3d 04:00
export function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  const rest = Math.round(seconds);
  const [days, hours, minutes] = [Math.floor(rest / 86400), Math.floor(rest / 3600) % 24, Math.floor(rest / 60) % 60];
  const two = (value) => String(value).padStart(2, "0");
  if (days) return `${days}d ${two(hours)}:${two(minutes)}`;
  return hours ? `${hours}:${two(minutes)}:${two(rest % 60)}` : `${minutes}:${two(rest % 60)}`;
}
