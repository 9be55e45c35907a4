import type { Tokenizer } from "../../lib/tokenizer/tokenizer.ts";

/** One id a character: its code, shifted by 3; 0 pads, 1 is BOS, 2 is EOS. */
export function characterTokenizer(options: { addsBos?: boolean; bosId?: number | null; eosId?: number | null } = {}): Tokenizer {
  const { addsBos = true, bosId = 1, eosId = 2 } = options;
  const text = (id: number) => id === 1 ? "<s>" : id === 2 ? "</s>" : String.fromCharCode(id - 3);
  return {
    encode: (string) => Int32Array.from(string, (c) => c.charCodeAt(0) + 3),
    decode: (ids, { skipSpecial = false } = {}) => Array.from(ids).filter((id) => !(skipSpecial && id < 3)).map(text).join(""),
    tokenText: text,
    isSpecial: (id) => id < 3,
    vocabSize: 65_539,
    bosId,
    eosId,
    padId: 0,
    addsBos,
  };
}

/** Runs `use` with the path of a file of that name and content, and removes it. */
export function withFile(name: string, content: string | Uint8Array, use: (path: string) => void): void {
  const dir = Deno.makeTempDirSync();
  try {
    const path = `${dir}/${name}`;
    Deno.writeFileSync(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
    use(path);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}
