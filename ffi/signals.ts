/** What Deno does not tell or do about signals and the process that started this one. */

/** `struct sigaction` of glibc on x86-64 and arm64 has 152 bytes and begins with the handler. */
const SIGACTION_BYTES = 152;
const SIG_IGN = 1n;
const NUMBERS = { SIGHUP: 1 } as const;

/**
 * Whether a signal was ignored when the program began, as `nohup` has it. Ask at once: Deno adds handlers of its own later.
 *
 * @param signal Its name.
 * @returns false where there is no glibc to ask.
 */
export function isIgnored(signal: keyof typeof NUMBERS): boolean {
  let libc;
  try {
    libc = Deno.dlopen("libc.so.6", {
      // int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact)
      sigaction: { parameters: ["i32", "pointer", "buffer"], result: "i32" },
    });
  } catch {
    return false;
  }
  const action = new BigUint64Array(SIGACTION_BYTES / 8);
  const status = libc.symbols.sigaction(NUMBERS[signal], null, new Uint8Array(action.buffer));
  libc.close();
  return status === 0 && action[0] === SIG_IGN;
}

const PR_SET_PDEATHSIG = 1, SIGKILL = 9;

/**
 * Has the system end this process when the one that started it ends, however that comes.
 * @param parent Its number.
 * @returns false: it has ended already, or the system does not do that
 */
export function endWithParent(parent: number): boolean {
  const libc = Deno.dlopen("libc.so.6", {
    // int prctl(int op, unsigned long arg)
    prctl: { parameters: ["i32", "usize"], result: "i32" },
  });
  const status = libc.symbols.prctl(PR_SET_PDEATHSIG, BigInt(SIGKILL));
  libc.close();
  return status === 0 && Deno.ppid === parent;
}
