#!/usr/bin/env bash
# On a machine with a GPU: the kernels' tests on it, then the benchmark of every suite.
#
#   bench/gpu_check.sh                                    all phases, in nine minutes
#   bench/gpu_check.sh --phases tests,float32             some of them: tests, float32, bfloat16
#   bench/gpu_check.sh --suites voc,ade20k --minutes 4    some suites, less time
#   bench/gpu_check.sh --phases bfloat16 -- --no-compile  what follows -- goes to bench/run.py
#
# Results go to bench/results/DEVICE (another folder: --output), with the device, the versions and
# the commit (--commit, where git does not know it). PYTHON names the Python. A phase that fails or
# has no time left does not stop the next ones; the exit code is 1 if any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
phases=tests,float32,bfloat16
suites=voc,cityscapes,ade20k,coco
minutes=9
output=
while (($#)); do
    case "$1" in
        --phases) phases="${2:?--phases needs a list}"; shift 2 ;;
        --suites) suites="${2:?--suites needs a list}"; shift 2 ;;
        --minutes) minutes="${2:?--minutes needs a number}"; shift 2 ;;
        --output) output="${2:?--output needs a folder}"; shift 2 ;;
        --commit) export FCNFAST_COMMIT="${2:?--commit needs a name}"; shift 2 ;;
        --) shift; break ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "gpu_check.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
    esac
done
[[ "$minutes" =~ ^[1-9][0-9]*$ ]] || {
    echo "gpu_check.sh: --minutes must be a whole number of minutes, not '$minutes'" >&2
    exit 2
}

device="$("$python" - <<'PYTHON'
import re
import sys

try:
    import torch
    import triton
except ImportError as error:
    sys.exit(f"gpu_check.sh: {error}: the check needs torch and triton")
if not torch.cuda.is_available():
    sys.exit(f"gpu_check.sh: torch {torch.__version__} finds no GPU here: nothing to check")
name = torch.cuda.get_device_name()
print(f"{name}, torch {torch.__version__}, triton {triton.__version__}", file=sys.stderr)
print(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
PYTHON
)" || exit 2

output="${output:-bench/results/$device}"
mkdir -p "$output" || exit 2
IFS=, read -r -a chosen <<<"$phases"
IFS=, read -r -a cases <<<"$suites"

# Phases as "tests" and "DTYPE SUITE"; each gets an equal part of the time that is left.
steps=()
for phase in "${chosen[@]}"; do
    case "$phase" in
        tests) steps+=(tests) ;;
        float32 | bfloat16 | float16) for suite in "${cases[@]}"; do steps+=("$phase $suite"); done ;;
        *) echo "gpu_check.sh: no phase '$phase': tests, float32, bfloat16, float16" >&2; exit 2 ;;
    esac
done

run_tests() {
    local workers=()
    "$python" -c 'import xdist' 2>/dev/null && workers=(-n 8 --dist loadfile)
    TRITON_INTERPRET=0 HYPOTHESIS_PROFILE="${HYPOTHESIS_PROFILE:-ci}" timeout "$1" \
        "$python" -m pytest -q "${workers[@]}" tests/test_kernel_*.py tests/test_gpu.py \
        2>&1 | tee "$output/tests.txt"
    return "${PIPESTATUS[0]}"
}

run_suite() { # seconds, dtype, suite, further options
    local begin=$(($1 > 40 ? $1 - 20 : $1 / 2)) file="$output/$2-$3" status
    # No op begins in the last seconds; what is measured is written after each, should the last
    # one not end in time.
    timeout $(($1 + 20)) "$python" bench/run.py --device cuda --dtype "$2" --suite "$3" \
        --minutes "$(awk "BEGIN { print $begin / 60 }")" --json "$file.json" "${@:4}" \
        2>&1 | tee "$file.txt"
    status=${PIPESTATUS[0]}
    if [[ -f "$file.json" ]] && "$python" -c 'import matplotlib' 2>/dev/null; then
        "$python" bench/plots.py "$output" "$file.json" || status=1
    fi
    return "$status"
}

failed=()
left=${#steps[@]}
for step in "${steps[@]}"; do
    seconds=$(((60 * minutes - SECONDS) / left))
    ((left -= 1))
    echo "== $step (${seconds} s)"
    if ((seconds < 10)); then
        failed+=("$step: no time left")
        continue
    fi
    read -r kind suite <<<"$step"
    if [[ "$kind" == tests ]]; then
        run_tests "$seconds" || failed+=("$step")
    else
        run_suite "$seconds" "$kind" "$suite" "$@" || failed+=("$step")
    fi
done

echo "results in $output after $((SECONDS / 60)) min $((SECONDS % 60)) s"
if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
