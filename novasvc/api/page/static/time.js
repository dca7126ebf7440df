// Formats a length of time: "4 s", "3 min". novasvc.api.page.rendering.span has the same rule.

export const now = () => performance.now() / 1000;

export function span(seconds) {
  const left = Math.max(0, seconds);
  if (left < 120) return `${Math.floor(left)} s`;
  if (left < 7200) return `${Math.floor(left / 60)} min`;
  if (left < 172800) return `${Math.floor(left / 3600)} h`;
  return `${Math.floor(left / 86400)} d`;
}
