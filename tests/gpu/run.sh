#!/bin/sh
# run.sh: every test that needs a GPU, on a machine that has one. Ends with a table: name, passed, failed, seconds.
#
#   sh tests/gpu/run.sh [HARNESS ...]
#
# HARNESS: compiled programs of tests/gpu/*.cu (each tells at its top how it is compiled); each is run with `check`. Where
# compute-sanitizer is installed, it looks for wrong accesses (memcheck) and races (racecheck) in the harnesses, in parts, and in tests of
# operators. What it does not finish in time counts by what it found until then. racecheck watches the project's own kernels alone, and
# runs no test that calls cuBLAS: already a plain product fails under it (tests/bench/gpu.md).
#
#   DENO=/path/to/deno        else the pinned one, or the one in PATH
#   CHECK_SECONDS=300         time limit of a test file or a harness
#   SANITIZE_SECONDS=120      time limit of one run of compute-sanitizer; 0: none at all
#   METALORA_TEST_BACKEND=cpu the CPU stands in for the GPU, to check the tests themselves
#
# Exit code: 0 when nothing failed and something ran, else 1.
set -u

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname -- "$(dirname -- "$here")")
table=$(mktemp) || exit 1
log=$(mktemp) || exit 1
trap 'rm -f "$table" "$log"' EXIT
trap 'exit 130' INT TERM

# Paths of harnesses are the caller's; everything else is the project's.
harnesses=
for harness; do
  case $harness in /*) ;; *) harness=$(pwd)/$harness ;; esac
  harnesses="$harnesses$harness
"
done
cd "$root" || exit 1

if [ -z "${DENO:-}" ]; then
  for each in .tools/deno-*/deno; do [ -x "$each" ] && DENO=$root/$each; done
  DENO=${DENO:-$(command -v deno)} || { echo "Cannot run the tests: there is no deno. Run make, or set DENO" >&2; exit 1; }
fi

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
METALORA_TEST_ALONE=1 # one file after the other: a test may take all of the GPU's memory
export NO_COLOR METALORA_TEST_ALONE

for file in tests/gpu/*_test.ts; do
  run "$file" "${CHECK_SECONDS:-300}" "$DENO" test --quiet --no-check --allow-all "$file"
  passed=$(number passed)
  failed=$(number failed)
  # A process that ends otherwise than by its tests has failed, too.
  if [ "$code" -ne 0 ] && [ "${failed:-0}" -eq 0 ]; then failed=1; fi
  row "$file" "${passed:-0}" "${failed:-0}" "$took"
done

# check HARNESS: they say "N checks, M failed", or "pass ..." for each case and "M cases failed".
check() {
  run "$1" "${CHECK_SECONDS:-300}" "$1" check
  failed=$(number failed)
  [ -n "$failed" ] || failed=$(number 'cases failed')
  checks=$(number checks,)
  if [ -n "$checks" ]; then passed=$((checks - ${failed:-0})); else passed=$(grep -c '^pass ' "$log"); fi
  if [ "$code" -ne 0 ] && [ "${failed:-0}" -eq 0 ]; then failed=1; fi
  row "$(basename "$1") check" "$passed" "${failed:-0}" "$took"
}

# sanitize TOOL NAME COMMAND...: one row; it passes when the tool has found nothing. What harnesses compare with is not looked at.
sanitize() {
  tool=$1
  what=$2
  shift 2
  kernels='--kernel-name-exclude kns=reference_kernel'
  [ "$tool" != racecheck ] || kernels='--kernel-name kns=metalora'
  # shellcheck disable=SC2086 # several words
  run "$tool: $what" "${SANITIZE_SECONDS:-120}" compute-sanitizer --tool "$tool" $kernels --target-processes all --error-exitcode 99 "$@"
  if [ "$code" -eq 0 ]; then
    row "$tool: $what" 1 0 "$took"
  elif { [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; } && ! grep -Eq '^=========.*(Invalid|Misaligned|hazard|leaked|rror:)' "$log"; then
    row "$tool: $what (stopped by the time limit)" 1 0 "$took"
  else
    row "$tool: $what" 0 1 "$took"
  fi
}

each_harness() {
  printf '%s' "$harnesses" | while IFS= read -r harness; do
    "$@" "$harness" </dev/null
  done
}

# sanitize_harness TOOL HARNESS: in parts, each of which finishes within its time limit.
sanitize_harness() {
  for part in 0 1 2 3 4 5; do sanitize "$1" "$(basename "$2") $((part + 1)) of 6" "$2" check $part 6; done
}

# operators TOOL FILE TESTS: the tests of one file whose names match.
operators() {
  sanitize "$1" "$2 $3" "$DENO" test --quiet --no-check --allow-all --filter "$3" "tests/gpu/$2"
}

each_harness check
if [ "${SANITIZE_SECONDS:-120}" -gt 0 ] && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    each_harness sanitize_harness "$tool"
    operators "$tool" operators_test.ts '/gatherRows|layernorm|relu|swigluGradients|segmentOuter/'
    operators "$tool" vectors_test.ts '/rowDots/'
    [ "$tool" = racecheck ] || operators "$tool" linear_test.ts '/A below W, room/'
    operators "$tool" attention_test.ts '/heads of 64/'
  done
else
  printf '\ncompute-sanitizer is not here, or not wanted: nothing was looked at with it\n'
fi

printf '\n'
awk -F '\t' '
  { name[NR] = $1; passed[NR] = $2; failed[NR] = $3; seconds[NR] = $4; all += $2; bad += $3; time += $4
    if (length($1) > width) width = length($1) }
  END {
    format = "%-" (width > 5 ? width : 5) "s  %7s  %7s  %7s\n"
    printf format, "name", "passed", "failed", "seconds"
    for (i = 1; i <= NR; i++) printf format, name[i], passed[i], failed[i], seconds[i]
    printf format, "total", all, bad, time
    exit !(bad == 0 && all > 0)
  }' "$table"
