"""Writes tests/fixtures/tokenizer.json and tests/fixtures/bytelevel/: what transformers makes of texts.

Run:  python tests/oracle/tokenizer.py ../shared   (transformers 5, tokenizers; the product itself never needs Python)

1. Real rows of <shared>/data through <shared>/models/stories260K: number of ids and a hash of them, the rows stay where they are.
2. Difficult texts through the same tokenizer: ids and decoded text.
3. The same through a small tokenizer of the other kind, as Llama 3 has it (byte-level BPE behind a regular expression, BOS by
   the post-processor, added tokens with their options), trained here and committed.
"""

import hashlib
import json
import pathlib
import shutil
import sys

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
FILES = {
    "mawps_asdiv_svamp_train.jsonl": 150, "gsm8k_train.jsonl": 60, "pubmedqa_pqal_train.jsonl": 30, "wikisql_mlx_train.jsonl": 60,
    "self_instruct_seed.jsonl": 60,
}
TEXTS = [
    "", " ", "  two  spaces ", "\n\nlines\n", "tab\there", "Once upon a time, there was a little girl.", "* 56 9 = 504",
    "naïve café – “quotes” … 日本語 😀 👩‍👩‍👧", "e\u0301 vs é", "</s>", "before</s>after", "before </s> after", "<s>start", "<unk> <s> </s>",
    "< s>", "\u0000\u0001", "x" * 300, "12345678901234567890", "It's they're I'LL we'd", "a\u00a0b\u3000c", "### Response:", "### Response: ",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXTRA = ["<|begin|>", "a <|begin|> b", "call <tool> now", "call<tool>now", "strip <mask> me", "strip<mask>me", "<|end|><|end|>"]


def digest(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def cases(tokenizer, texts: list[str]) -> list[dict]:
    result = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = {name: tokenizer.decode(ids, skip_special_tokens=skip) for name, skip in [("all", False), ("plain", True)]}
        result.append({"text": text, "ids": ids, "decoded": decoded["all"], "plain": decoded["plain"]})
    return result


def real_rows(tokenizer, data: pathlib.Path) -> list[dict]:
    rows = []
    for name, count in FILES.items():
        lines = (data / name).read_text().rstrip("\n").split("\n")
        step = len(lines) // count
        for index in range(0, step * count, step):
            row = json.loads(lines[index])
            text = "\n".join([row["instruction"], row["input"], row["output"]])
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            rows.append({"file": name, "line": index, "tokens": len(ids), "hash": digest(ids)})
    return rows


def train_bytelevel(folder: pathlib.Path):
    corpus = [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        "Once upon a time, there was a little girl who liked to play with numbers: 1, 22, 333 and 4444!",
        "naïve café – “quotes” … 日本語", "It's they're I'll we'd they've I'm don't", "\n\n### Instruction:\n\n### Response:",
    ]
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    begin = tokenizer.token_to_id("<|begin|>")
    template = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", begin)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
    return AutoTokenizer.from_pretrained(folder)


def main() -> None:
    shared = pathlib.Path(sys.argv[1])
    stories = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    shutil.rmtree(FIXTURES / "bytelevel", ignore_errors=True)
    bytelevel = train_bytelevel(FIXTURES / "bytelevel")
    fixture = {
        "transformers": transformers.__version__,
        "stories260K": {
            "with_special": stories("Hello world")["input_ids"], "rows": real_rows(stories, shared / "data"), "texts": cases(stories, TEXTS),
        },
        "bytelevel": {
            "with_special": bytelevel("Hello world")["input_ids"], "size": len(bytelevel), "texts": cases(bytelevel, TEXTS + EXTRA),
        },
    }
    path = FIXTURES / "tokenizer.json"
    with path.open("w") as file:
        json.dump(fixture, file)
        file.write("\n")
    print(f"{path}: {len(fixture['stories260K']['rows'])} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
