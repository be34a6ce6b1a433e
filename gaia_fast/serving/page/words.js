// Numbers, as the page writes them.

export const written = (value) => value.toPrecision(4);
export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

export function size(bytes) {
  return bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${Number((bytes / 2 ** 20).toFixed(1))} MiB`;
}

/** As in "the last hour", "the last 10 minutes". */
export function period(seconds) {
  for (const [unit, length] of [["hour", 3600], ["minute", 60]]) {
    if (seconds === length) return unit;
    if (seconds % length === 0) return `${seconds / length} ${unit}s`;
  }
  return `${seconds} seconds`;
}
