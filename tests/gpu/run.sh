#!/bin/sh
# run.sh: every test that needs a GPU, on a machine that has one. Ends with a table: name, passed, failed, seconds.
#
#   make test-gpu                         builds what is needed and runs all
#   sh tests/gpu/run.sh [HARNESS ...]     HARNESS: compiled programs of tests/gpu/*.cu (default: those of `make gpu-harness`)
#
#   STAGES="tests checks memcheck racecheck"
#     tests      the files of tests/gpu; the one that takes all of a GPU's memory runs alone, first
#     checks     the harnesses: each kernel against references in double
#     memcheck   compute-sanitizer looks for wrong accesses in the harnesses, in parts, and in the tests that run in one process
#     racecheck  compute-sanitizer looks for races in the project's kernels: in the harnesses and in the tests that call no cuBLAS, as
#                already a plain product of cuBLAS fails under it (tests/bench/gpu.md); both in parts
#   JOBS=1                    how many of these run at once on a GPU
#   GPUS=0                    the GPUs that they run on, such as "0 1"
#   DENO=/path/to/deno        else the pinned one, or the one in PATH
#   CHECK_SECONDS=300         time limit of a test file or a harness
#   SANITIZE_SECONDS=600      time limit of one run of compute-sanitizer
#   RACES="attention operators vectors"   files of tests/gpu that racecheck looks at, of four tests or more
#   METALORA_TEST_BACKEND=cpu the CPU stands in for the GPU, to check the tests themselves
#
# What is not finished in time has failed. Where compute-sanitizer is not installed, its stages are left out.
#
# Exit code: 0 when nothing failed and something ran, else 1.
set -u

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname -- "$(dirname -- "$here")")
work=$(mktemp -d) || exit 1
table=$work/table
log=$work/log
: >"$table"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Paths of harnesses are the caller's; everything else is the project's.
harnesses=
for harness; do
  case $harness in /*) ;; *) harness=$(pwd)/$harness ;; esac
  harnesses="$harnesses$harness
"
done
cd "$root" || exit 1
[ $# -gt 0 ] || harnesses="$root/build/gpu-kernels
$root/build/gpu-skinny
$root/build/gpu-attention
"

if [ -z "${DENO:-}" ]; then
  for each in .tools/deno-*/deno; do [ -x "$each" ] && DENO=$root/$each; done
  DENO=${DENO:-$(command -v deno)} || { echo "Cannot run the tests: there is no deno. Run make, or set DENO" >&2; exit 1; }
fi

wanted() { case " ${STAGES-tests checks memcheck racecheck} " in *" $1 "*) ;; *) return 1 ;; esac; }

# limited SECONDS COMMAND...: 124 when the time was up.
limited() {
  seconds=$1
  shift
  if command -v timeout >/dev/null; then timeout -k 10 "$seconds" "$@"; else "$@"; fi
}

# run NAME SECONDS COMMAND...: shows what the command says, keeps it in $log, and leaves $code and $took.
run() {
  name=$1
  limit=$2
  shift 2
  printf '\n== %s\n' "$name"
  began=$(date +%s)
  { limited "$limit" "$@" 2>&1; echo "run.sh: exit code $?"; } | tee "$log"
  code=$(sed -n 's/^run\.sh: exit code //p' "$log" | tail -n 1)
  took=$(($(date +%s) - began))
}

# number WORDS: the last number in $log that stands before these words; nothing where there is none.
number() {
  awk -v words="$1" 'match($0, "[0-9]+ " words) { found = substr($0, RSTART, RLENGTH) + 0 } END { print found }' "$log"
}

# row NAME PASSED FAILED SECONDS
row() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$table"; }

NO_COLOR=1
export NO_COLOR

# count: leaves in $passed and $failed what $log says of tests ("N passed | M failed") or of a harness ("N checks, M failed", or "pass ..."
# for each case and "M cases failed"). A process that ends otherwise than by these has failed; so has one that tested nothing, but
# where the CPU stands in, which has no use for some files.
count() {
  failed=$(number failed)
  [ -n "$failed" ] || failed=$(number 'cases failed')
  checks=$(number checks,)
  if [ -n "$checks" ]; then passed=$((checks - ${failed:-0})); else passed=$(number passed); fi
  [ -n "$passed" ] || passed=$(grep -c '^pass ' "$log")
  failed=${failed:-0}
  if [ "$code" -ne 0 ] || { [ "$passed" -eq 0 ] && [ -z "${METALORA_TEST_BACKEND:-}" ]; }; then [ "$failed" -gt 0 ] || failed=1; fi
}

# A file of tests/gpu.
tests() {
  run "$1" "${CHECK_SECONDS:-300}" "$DENO" test --quiet --no-check --allow-all "$1"
  count
  row "$1" "$passed" "$failed" "$took"
}

# A harness.
check() {
  run "$1" "${CHECK_SECONDS:-300}" "$1" check
  count
  row "$(basename "$1") check" "$passed" "$failed" "$took"
}

# job COMMAND...: in the background, on the GPU whose turn it is. What it says comes when it ends.
job() {
  read -r CUDA_VISIBLE_DEVICES <&9
  export CUDA_VISIBLE_DEVICES
  {
    log=$(mktemp "$work/log.XXXXXX")
    "$@" >"$log.said" 2>&1
    cat "$log.said"
    rm -f "$log" "$log.said"
    echo "$CUDA_VISIBLE_DEVICES" >&9
  } &
}

each_harness() {
  printf '%s' "$harnesses" | while IFS= read -r harness; do
    if [ -x "$harness" ]; then
      "$@" "$harness" </dev/null
    else
      printf '\n== %s\nnot built: make gpu-harness\n' "$harness"
      row "$(basename "$harness"): not built" 0 1 0
    fi
  done
}

# sanitize TOOL NAME COMMAND...: one row, with the tests or checks that ran under the tool. One that has found something fails the run. What
# harnesses compare with is not looked at.
sanitize() {
  tool=$1
  what=$2
  shift 2
  kernels='--kernel-name-exclude kns=reference_kernel'
  [ "$tool" != racecheck ] || kernels='--kernel-name kns=metalora'
  # shellcheck disable=SC2086 # several words
  run "$tool: $what" "${SANITIZE_SECONDS:-600}" compute-sanitizer --tool "$tool" $kernels --target-processes all --error-exitcode 99 "$@"
  count
  row "$tool: $what" "$passed" "$failed" "$took"
}

# Races show in a single run of each check, which takes long enough.
sanitize_harness() {
  once=
  [ "$1" != racecheck ] || once=once
  for part in 0 1 2 3 4 5; do
    # shellcheck disable=SC2086 # a word or none
    job sanitize "$1" "$(basename "$2") check, $((part + 1)) of 6" "$2" check $part 6 $once
  done
}

# sanitize_tests TOOL FILE [what of it, for the name of its row]
sanitize_tests() { job sanitize "$1" "$2${3-}" "$DENO" test --quiet --no-check --allow-all "tests/gpu/$2"; }

mkfifo "$work/turns" || exit 1
exec 9<>"$work/turns"
gpus=${GPUS:-${CUDA_VISIBLE_DEVICES:-0}}
if wanted tests; then
  (
    export CUDA_VISIBLE_DEVICES="${gpus%% *}" METALORA_TEST_ALONE=1
    tests tests/gpu/faults_test.ts
  )
fi
for gpu in $gpus; do for _ in $(seq "${JOBS:-1}"); do echo "$gpu" >&9; done; done
if wanted tests; then
  for file in tests/gpu/*_test.ts; do [ "$file" = tests/gpu/faults_test.ts ] || job tests "$file"; done
fi
if wanted checks; then each_harness job check; fi
if command -v compute-sanitizer >/dev/null; then
  if wanted racecheck; then
    for name in ${RACES-attention operators vectors}; do
      for part in 0 1 2 3; do
        export METALORA_TEST_PART="$part 4"
        sanitize_tests racecheck ${name}_test.ts ", $((part + 1)) of 4"
      done
    done
    unset METALORA_TEST_PART
    each_harness sanitize_harness racecheck
  fi
  if wanted memcheck; then
    for name in linear attention operators model pytorch vectors device head; do sanitize_tests memcheck ${name}_test.ts; done
    each_harness sanitize_harness memcheck
  fi
elif wanted memcheck || wanted racecheck; then
  printf '\ncompute-sanitizer is not here: nothing was looked at with it\n'
fi
for gpu in $gpus; do for _ in $(seq "${JOBS:-1}"); do read -r _ <&9; done; done # all have ended

printf '\n'
LC_ALL=C sort "$table" | awk -F '\t' '
  { name[NR] = $1; passed[NR] = $2; failed[NR] = $3; seconds[NR] = $4; all += $2; bad += $3; time += $4
    if (length($1) > width) width = length($1) }
  END {
    format = "%-" (width > 5 ? width : 5) "s  %7s  %7s  %7s\n"
    printf format, "name", "passed", "failed", "seconds"
    for (i = 1; i <= NR; i++) printf format, name[i], passed[i], failed[i], seconds[i]
    printf format, "total", all, bad, time
    exit !(bad == 0 && all > 0)
  }'
