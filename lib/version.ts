/** Version of metalora: printed by `--version` and written into what a run leaves behind. */
export const VERSION = "0.1.0";
