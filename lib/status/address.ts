/** Where the status server listens, and which names it answers to. */
import { isIP, isIPv6 } from "node:net";
import { UserError } from "../errors.ts";

/** A place to listen at. */
export interface Address {
  /** A name or an IP address, IPv6 without brackets. */
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
}

/**
 * Reads `HOST:PORT`, `[IPV6]:PORT` or `PORT` (on this machine only).
 *
 * @throws {UserError} Exit code 2: neither of these.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(parseAddress("8080"), { host: "127.0.0.1", port: 8080 });
 * assertEquals(parseAddress("[::1]:0"), { host: "::1", port: 0 });
 * ```
 */
export function parseAddress(text: string): Address {
  const match = /^(?:(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+)):)?(\d{1,5})$/i.exec(text.trim());
  const port = Number(match?.[3]);
  if (!match || port > 65535 || (match[1] !== undefined && !isIPv6(match[1]))) {
    throw new UserError(
      `Cannot serve the status: '${text}' is no address. Use HOST:PORT, [IPV6]:PORT or PORT alone, such as 127.0.0.1:8080`,
      2,
    );
  }
  const host = (match[1] ?? match[2] ?? "127.0.0.1").toLowerCase();
  // A resolver may send this name elsewhere.
  return { host: host === "localhost" ? "127.0.0.1" : host, port };
}

/** As it stands in a URL: "127.0.0.1:8080", "[::1]:8080". */
export function formatAddress({ host, port }: Address): string {
  return `${isIPv6(host) ? `[${host}]` : host}:${port}`;
}

/**
 * Whether only this machine can reach an address.
 *
 * @example
 * ```ts
 * import { assert } from "@std/assert";
 * assert(isLoopback("127.0.0.1") && isLoopback("::1") && !isLoopback("0.0.0.0") && !isLoopback("localhost.example"));
 * ```
 */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

/**
 * Which `Host` headers are answered. A page on the web can make a browser ask for any name that its owner points at 127.0.0.1 (DNS
 * rebinding); such a request carries that name, so only known names are answered. An IP address cannot be pointed elsewhere: a
 * server that others may reach answers to all of them.
 *
 * @param listen where the server listens
 * @param names further names, without ports
 */
export function hostRule({ host }: Address, names: readonly string[]): (header: string | null | undefined) => boolean {
  const known = new Set(["localhost", host, ...names.map((name) => name.toLowerCase())]);
  const local = isLoopback(host);
  return (header) => {
    const match = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?$/i.exec(header ?? "");
    if (!match) return false;
    const name = (match[1] ?? match[2]!).toLowerCase().replace(/\.$/, "");
    if (known.has(name)) return true;
    return local ? isLoopback(name) : isIP(name) !== 0;
  };
}
