import { runCli } from "./lib/cli/cli.ts";

if (import.meta.main) Deno.exit(await runCli(Deno.args));
