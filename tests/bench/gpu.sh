#!/bin/sh
# The measurements of tests/bench/gpu.md on a machine with a GPU, the peers beside them on the same card. Needs the built libraries
# (make all cuda), Python with torch, transformers and peft for the peers, and ../shared/bench. Five and a half minutes on an H200 without
# torch.compile, which takes more than four by itself. gpu_table.ts prints what it leaves as tables.
#
#   sh tests/bench/gpu.sh [FOLDER]     results go to FOLDER (default: build/gpu)
#
#   PARTS="metalora floor method peft load"   what is measured: our steps, the floor, the authors' method, PEFT, loading
#   PEERS="eager checkpointing compile"       how PEFT is run
#   CHECKPOINT=/dev/shm/llama                 where 13 GB of weights are written for the time of loading
set -u
out=${1:-build/gpu}
mkdir -p "$out"
DENO=${DENO:-deno}

wanted() { case " ${PARTS-metalora floor method peft load} " in *" $1 "*) ;; *) return 1 ;; esac; }

ours() {
  if "$DENO" run -A main.ts bench --json "$@" > "$out/one.json"; then
    printf '{"args":"%s","result":%s}\n' "$*" "$(cat "$out/one.json")" >> "$out/metalora.jsonl"
    tail -1 "$out/metalora.jsonl" | cut -c1-200
  fi
  rm -f "$out/one.json"
}

if wanted metalora; then
  : > "$out/metalora.jsonl"
  # train.memory counts the driver's share, too (660 MiB); the peers' numbers leave it out.
  ours --model-shape llama2-7b --batch 4 --length 400 --steps 15 --parts
  ours --model-shape llama2-7b --batch 4 --length 400 --steps 15 --set "train.memory=19160 MiB"
  ours --model-shape llama2-7b --batch 4 --length 400 --steps 43 --method meta-lora
  ours --model-shape llama2-7b --batch 4 --length 2048 --steps 10 --parts
  ours --model-shape llama2-7b --batch 4 --length 2048 --steps 10 --set "train.memory=18660 MiB"
  ours --model-shape llama2-7b --batch 4 --length 2048 --steps 13 --method meta-lora
  ours --model-shape smollm2-135m --batch 8 --length 512 --steps 50 --parts
  ours --model-shape smollm2-135m --batch 8 --length 512 --steps 93 --method meta-lora
  ours --model-shape baichuan2-7b --batch 4 --length 400 --steps 15 --set "train.memory=20160 MiB"
  ours --model-shape baichuan2-7b --batch 4 --length 400 --steps 15
  ours --model-shape baichuan2-7b --batch 4 --length 400 --steps 33 --method meta-lora
  ours --model-shape opt-1.3b --batch 4 --length 2048 --steps 15 --parts
  ours --model-shape opt-1.3b --batch 4 --length 2048 --steps 33 --method meta-lora
  for shape in mistral-7b llama3-8b qwen2-7b; do ours --model-shape $shape --batch 4 --length 400 --steps 8; done
  for shape in qwen2-0.5b smollm2-1.7b; do ours --model-shape $shape --batch 8 --length 512 --steps 10; done
fi

peers=../shared/bench
if [ -d "$peers" ]; then
  if wanted floor; then OUT="$out" python3 "$peers/gemm_floor.py"; fi
  if wanted method; then python3 "$peers/peer_metalora.py" baichuan2-7b opt-1.3b | tee "$out/peer_metalora.jsonl"; fi
  if wanted peft; then
    for how in ${PEERS-eager checkpointing compile}; do
      OUT="$out" python3 "$peers/peer_peft.py" "$how" && mv "$out/peer_peft.json" "$out/peer_peft_$how.json"
    done
  fi
fi

if wanted load; then
  checkpoint=${CHECKPOINT:-/dev/shm/llama}
  python3 tests/bench/make_checkpoint.py "$checkpoint"
  "$DENO" run -A tests/bench/load.ts "$checkpoint" cuda | tee "$out/load.txt"
  rm -rf "$checkpoint"
fi
