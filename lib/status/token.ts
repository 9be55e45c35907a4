/** The token that a status server asks for when others than this machine can reach it. */
import { createHash, timingSafeEqual } from "node:crypto";
import { UserError } from "../errors.ts";
import { unreadable } from "../files.ts";

/** Environment variable with the token. */
export const TOKEN_VARIABLE = "METALORA_STATUS_TOKEN";
/** Fewest characters of a token: 16 random ones cannot be guessed over a network. */
export const SHORTEST_TOKEN = 16;

/**
 * The token of `status.token_file`, else of the environment; null when there is none. A command line would show it to every user of
 * the machine, so it cannot be given there.
 *
 * @throws {UserError} Exit code 2: the file cannot be read, or the token is too short or has characters that a header cannot carry.
 */
export function readToken(file: string | null, environment = Deno.env.get(TOKEN_VARIABLE)): string | null {
  if (file === null && (environment ?? "") === "") return null;
  const from = file === null ? `the environment variable ${TOKEN_VARIABLE}` : `'${file}'`;
  let token = environment ?? "";
  if (file !== null) {
    try {
      token = Deno.readTextFileSync(file).trim();
    } catch (error) {
      const why = unreadable(error, `Write a token of ${SHORTEST_TOKEN} characters into it`);
      throw new UserError(`Cannot read the status token ${from}: ${why}`, 2);
    }
  }
  if (token.length < SHORTEST_TOKEN) {
    throw new UserError(
      `Cannot use the status token in ${from}: it has ${token.length} characters, at least ${SHORTEST_TOKEN} are needed. ` +
        "Make one with: openssl rand -hex 16",
      2,
    );
  }
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new UserError(
      `Cannot use the status token in ${from}: it has spaces or characters beyond ASCII. Use letters and digits`,
      2,
    );
  }
  return token;
}

/**
 * A check of `Authorization` headers: `Bearer TOKEN`, or `Basic` with any user name and the token as password, which is what a browser
 * sends after asking. Takes the same time for every wrong token.
 */
export function tokenCheck(token: string): (header: string | undefined) => boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  const expected = digest(token);
  return (header) => {
    const [, scheme, value] = /^(Bearer|Basic) +(\S+)$/i.exec(header ?? "") ?? [];
    if (scheme === undefined || value === undefined) return false;
    const given = scheme.toLowerCase() === "bearer" ? value : basicPassword(value);
    return given !== null && timingSafeEqual(digest(given), expected);
  };
}

function basicPassword(encoded: string): string | null {
  try {
    const text = atob(encoded);
    const colon = text.indexOf(":");
    return colon < 0 ? null : text.slice(colon + 1);
  } catch { // no base64
    return null;
  }
}
