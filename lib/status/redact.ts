/** Takes out of a text what a status page must not tell. */

/** Shapes of secrets that turn up in messages and data: keys of well-known services, credentials in addresses and headers. */
const SECRETS: readonly (readonly [RegExp, string])[] = [
  [/\b(hf|sk|pk|ghp|gho|ghs|github_pat|glpat|xox[abp])[-_][A-Za-z0-9_-]{12,}/g, "[redacted]"],
  [/\bAKIA[0-9A-Z]{16}\b/g, "[redacted]"],
  [/\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}/g, "[redacted]"],
  [/\b(Bearer|Basic)\s+(?=\S*[0-9=._-])[A-Za-z0-9+/=._~-]{8,}/gi, "$1 [redacted]"],
  [/\b([a-z][a-z0-9+.-]*:\/\/)[^\s/@]+@/gi, "$1[redacted]@"],
  [/\b([a-z_-]*(?:token|secret|password|passwd|api[_-]?key))(["']?\s*[=:]\s*["']?)[^\s"'&,;]{4,}/gi, "$1$2[redacted]"],
];

/** Folders of an absolute path, or of one below the home; what is behind the last slash stays. */
const FOLDERS = /(^|[\s'"`(=:[])(?:~|[A-Za-z]:)?[\\/](?:[^\\/\s'"`)\]:]+[\\/])+/g;

/**
 * Removes secrets by their shape, and those given, from a text.
 *
 * @param own Secrets to remove wherever they occur, such as the server's token.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(redactSecrets("cannot fetch https://me:pass@host/x", []), "cannot fetch https://[redacted]@host/x");
 * ```
 */
export function redactSecrets(text: string, own: readonly string[]): string {
  for (const secret of own) if (secret !== "") text = text.replaceAll(secret, "[redacted]");
  for (const [shape, replacement] of SECRETS) text = text.replace(shape, replacement);
  return text;
}

/**
 * Leaves of absolute paths only their last part.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(shortenPaths("Cannot write '/home/me/runs/a/adapter': no space left"), "Cannot write 'adapter': no space left");
 * ```
 */
export function shortenPaths(text: string): string {
  return text.replace(FOLDERS, "$1");
}

/** The last part of a path, without what it lies in. */
export function lastPart(path: string): string {
  const parts = path.split(/[\\/]+/).filter((part) => part !== "" && part !== ".");
  return parts.at(-1) ?? path;
}
