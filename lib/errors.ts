/**
 * The one error that is meant for the person at the keyboard.
 *
 * Its message is complete by itself — "Cannot <action> <on what>: <value found>. <what to do>" — and the command line prints
 * it as one line without a stack trace. Every other error is a defect of metalora.
 */
export class UserError extends Error {
  override readonly name = "UserError";
  /** 2: wrong usage, configuration or input data; 1: a run that failed; 75: another run holds the output. */
  readonly exitCode: ExitCode;

  /**
   * @param message One sentence or two: what was attempted, on what, the value found, what to do.
   * @param exitCode Exit code of the program, 1 (a failed run) when omitted.
   */
  constructor(message: string, exitCode: ExitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** The error that ended something, where clearing up behind it (`using`) failed as well. */
export function firstError(error: unknown): unknown {
  while (error instanceof SuppressedError) error = error.suppressed;
  return error;
}

/** What a check says against something that would be begun, complete with what to do; null: nothing. */
export function refusalOf(check: () => void): string | null {
  try {
    check();
    return null;
  } catch (error) {
    if (error instanceof UserError) return error.message;
    throw error;
  }
}

/** Exit codes that an error may ask for. */
export type ExitCode = 1 | 2 | 75;

/** Exit code of a program that a signal stopped and that has saved its state: 128 and the number of SIGTERM. */
export const STOPPED = 143;
/** Exit code of one that a second signal ended at once, with nothing saved: 128 and the number of SIGINT. */
export const ENDED = 130;
