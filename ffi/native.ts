/**
 * The second floor of the boundary: finds and loads a native library, checks its ABI version, and turns a failed status
 * into an error that carries the library's own message.
 */
import { fileURLToPath } from "node:url";
import { ABI_VERSION, symbols } from "./symbols.ts";

/** A native operator failed; the message names the operation and the shapes. */
export class NativeError extends Error {
  override name = "NativeError";
}

/**
 * The device could not do it: its memory is taken, a kernel ran into something, it cannot be opened. The message is complete: it
 * names the operation and the shapes, what the device said and what to do.
 */
export class DeviceError extends NativeError {
  override name = "DeviceError";
  /**
   * Whether work that was under way failed: the device is of no use any more to this process, and unless `synchronous()`, the
   * message may name an operation that came later.
   */
  readonly lost: boolean;

  constructor(message: string, { lost = false } = {}) {
    super(message);
    this.lost = lost;
  }
}

/** What a failed call returns when the device is to blame: ML_FAULT and ML_LOST of metalora.h. */
const FAULT = 2, LOST = 3;

/** The error of a failed call. */
export function nativeError(status: number, message: string): NativeError {
  return status === FAULT || status === LOST ? new DeviceError(message, { lost: status === LOST }) : new NativeError(message);
}

/** Whether every operator is waited for (METALORA_SYNCHRONOUS=1), so that a fault names the one that made it. */
export function synchronous(): boolean {
  return !["", "0"].includes(Deno.env.get("METALORA_SYNCHRONOUS") ?? "");
}

/** A library cannot be loaded; the message says what to do. */
export class LibraryError extends NativeError {
  override name = "LibraryError";
}

/** Which of the two libraries: they export the same symbols. */
export type Backend = "cpu" | "cuda";

type Library = Deno.DynamicLibrary<typeof symbols>;

/**
 * Where the library of a backend may lie, best first: `METALORA_LIBRARY_DIR`, then, where it has none, `build/` beside the program's own
 * source (which is also where `deno compile` embeds it).
 */
export function libraryCandidates(backend: Backend): string[] {
  const file = `libmetalora_${backend}.so`;
  const directory = Deno.env.get("METALORA_LIBRARY_DIR");
  const own = new URL(`../build/${file}`, import.meta.url);
  return [...(directory ? [`${directory}/${file}`] : []), ...(own.protocol === "file:" ? [fileURLToPath(own)] : [])];
}

function stat(path: string): Deno.FileInfo | null {
  try {
    return Deno.statSync(path);
  } catch {
    return null;
  }
}

const loaded = new Map<Backend, Native>();

/** A loaded native library. */
export class Native {
  readonly symbols: Library["symbols"];

  private constructor(readonly library: Library, readonly path: string) {
    this.symbols = library.symbols;
  }

  /**
   * Loads the library of a backend, once per process.
   * @throws {LibraryError} when it is missing, cannot be opened or speaks another ABI version
   */
  static load(backend: Backend): Native {
    const known = loaded.get(backend);
    if (known) return known;
    const directory = Deno.env.get("METALORA_LIBRARY_DIR");
    if (directory && !stat(directory)?.isDirectory) {
      throw new LibraryError(`Cannot use METALORA_LIBRARY_DIR: '${directory}' is no folder. Name one, or leave it out`);
    }
    const tried: string[] = [];
    for (const path of libraryCandidates(backend)) {
      let library: Library;
      try {
        library = Deno.dlopen(path, symbols);
      } catch (error) {
        const reason = loaderReason(path, error);
        if (directory && path.startsWith(`${directory}/`) && stat(path)) {
          throw new LibraryError(
            `Cannot use ${path} of METALORA_LIBRARY_DIR: ${reason}. Rebuild it, or leave METALORA_LIBRARY_DIR out`,
          );
        }
        tried.push(`${path} (${reason})`);
        continue;
      }
      const version = library.symbols.ml_abi_version();
      if (version !== ABI_VERSION) {
        library.close();
        throw new LibraryError(
          `Cannot use ${path}: its ABI version is ${version}, this program needs ${ABI_VERSION}. Rebuild it: make`,
        );
      }
      const native = new Native(library, path);
      loaded.set(backend, native);
      return native;
    }
    const problem = Deno.build.standalone ? unpackProblem(tried.at(-1)!) : null;
    throw new LibraryError(
      `Cannot load the ${backend} library: ${
        problem ?? `tried ${tried.join(", ")}. Build it: ${backend === "cpu" ? "make" : "make cuda"}`
      }`,
    );
  }

  /** Closes the library. Only for programs that must leave nothing open (tests); every Device must be closed before. */
  close(): void {
    for (const [backend, native] of loaded) if (native === this) loaded.delete(backend);
    this.library.close();
  }

  /** The last message of a context, or of the last failed `ml_create` when the context is null. */
  lastError(ctx: Deno.PointerValue): string {
    return readText((text, capacity) => this.symbols.ml_last_error(ctx, text, capacity));
  }
}

/** What the loader says of a library, without its path and what Deno puts before it, twice. */
export function loaderReason(path: string, error: unknown): string {
  const message = error instanceof Error ? error.message.split("\n")[0]! : String(error);
  return message.replace(/^(Could not open library: )+/, "").replace(`${path}: `, "");
}

/**
 * What is wrong when the single binary cannot load a library of its own: Deno unpacks it into the temporary folder, which must
 * take files and let them be executed.
 *
 * @param error What Deno said of the library that is inside the binary.
 * @returns null for any other failure.
 */
export function unpackProblem(error: string): string | null {
  const folder = Deno.env.get("TMPDIR") || "/tmp";
  const advice = "Set TMPDIR to a folder where files may be written and executed, such as TMPDIR=$HOME/.cache";
  if (/failed to map segment|Operation not permitted/.test(error)) {
    return `it is unpacked into ${folder}, where nothing may be executed (mounted noexec). ${advice}`;
  }
  if (/Failed to write native addon|\(os error \d+\)/.test(error)) {
    return `it cannot be unpacked into ${folder}, which is full, read-only or not open to this user. ${advice}`;
  }
  return null;
}

/** Reads a C string that a function copies into a buffer of a given capacity. */
export function readText(fill: (text: Uint8Array<ArrayBuffer>, capacity: number) => number, capacity = 4096): string {
  const text = new Uint8Array(capacity);
  const length = Math.max(0, Math.min(fill(text, text.length), text.length - 1));
  return new TextDecoder().decode(text.subarray(0, length));
}
