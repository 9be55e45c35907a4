/** Such as "1 step" or "1,200 steps". @param noun Its plural ends in "s". */
export function counted(count: number, noun: string): string {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}
