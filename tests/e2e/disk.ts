/** A small disk of its own, which can fill up or fail: an ext4 file system in a file. */
import { join } from "node:path";

/** Runs a program. @returns whether it succeeded */
function run(program: string, ...args: string[]): boolean {
  try {
    return new Deno.Command(program, { args, stdin: "null", stdout: "null", stderr: "null" }).outputSync().success;
  } catch { // there is no such program
    return false;
  }
}

/** Mounted below a folder as `disk`. */
export class Disk implements Disposable {
  readonly #image: string;
  readonly path: string;

  /** @throws {Error} where this process may not mount */
  constructor(folder: string, mebibytes = 16) {
    this.#image = join(folder, "disk.img");
    this.path = join(folder, "disk");
    Deno.mkdirSync(this.path);
    {
      using file = Deno.openSync(this.#image, { write: true, createNew: true });
      file.truncateSync(mebibytes * 2 ** 20);
    }
    // No blocks are kept for root.
    if (!run("mkfs.ext4", "-q", "-m", "0", this.#image) || !this.#mount()) throw new Error(`Cannot mount ${this.#image}`);
  }

  #mount(): boolean {
    return run("mount", "-o", "loop,errors=remount-ro", this.#image, this.path);
  }

  /** The kernel finds an error and turns the disk read-only, files that are open included. @returns whether it can be made to */
  fail(): boolean {
    const name = new TextDecoder().decode(
      new Deno.Command("findmnt", { args: ["-no", "SOURCE", this.path] }).outputSync().stdout,
    );
    return run("sh", "-c", `echo test > /sys/fs/ext4/${name.trim().replace("/dev/", "")}/trigger_fs_error`);
  }

  /** Takes it off, lets fsck mend it, and puts it back. */
  mend(): void {
    this[Symbol.dispose]();
    run("fsck.ext4", "-y", "-f", this.#image); // its code tells that there was something to mend
    if (!this.#mount()) throw new Error(`Cannot mount ${this.#image} again`);
  }

  /** Writes a file until nothing more goes on the disk. */
  fill(): void {
    run("dd", "if=/dev/zero", `of=${join(this.path, "filler")}`, "bs=64K");
    run("dd", "if=/dev/zero", `of=${join(this.path, "filler2")}`, "bs=1K");
  }

  /** Removes what {@linkcode fill} wrote. */
  free(): void {
    for (const name of ["filler", "filler2"]) Deno.removeSync(join(this.path, name));
  }

  [Symbol.dispose](): void {
    run("umount", this.path);
  }
}

/** Why there are no such disks here; null: there are. */
export const noDisks: string | null = (() => {
  const folder = Deno.makeTempDirSync();
  try {
    using disk = new Disk(folder, 4);
    return disk.fail() ? null : "the kernel offers no way to make ext4 fail";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
})();
