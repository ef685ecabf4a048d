#!/usr/bin/env bash
# On a machine with a GPU: the kernels' tests on it, then the benchmark of every suite.
#
#   bench/gpu_check.sh                                         all phases, in nine minutes
#   PHASES="tests float32" bench/gpu_check.sh                  some of: tests, shares, a DTYPE of run.py
#   SUITES="voc ade20k" MINUTES=4 bench/gpu_check.sh           some suites, less time
#   PHASES=bfloat16 bench/gpu_check.sh --no-compile            arguments go to bench/run.py
#
# Results go to bench/results/DEVICE (or OUTPUT), with the device, the versions and the commit
# (FCNFAST_COMMIT, where git does not know it). PYTHON names the Python. A phase that fails or has
# no time left does not stop the next ones; the exit code is 1 if any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}" minutes="${MINUTES:-9}"
[[ "$minutes" =~ ^[1-9][0-9]*$ ]] || {
    echo "gpu_check.sh: MINUTES must be a whole number of minutes, not '$minutes'" >&2
    exit 2
}
device="$("$python" - <<'PYTHON'
import re, sys, torch, triton
if not torch.cuda.is_available():
    sys.exit(f"gpu_check.sh: torch {torch.__version__} finds no GPU here: nothing to check")
name = torch.cuda.get_device_name()
print(f"{name}, torch {torch.__version__}, triton {triton.__version__}", file=sys.stderr)
print(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
PYTHON
)" || exit 2
output="${OUTPUT:-bench/results/$device}"
mkdir -p "$output" || exit 2

# Steps are "tests", "shares" and "DTYPE SUITE"; each gets an equal part of the time that is left.
steps=()
for phase in ${PHASES:-tests float32 bfloat16 shares}; do
    case "$phase" in
        tests | shares) steps+=("$phase") ;;
        float32 | bfloat16 | float16)
            for suite in ${SUITES:-voc cityscapes ade20k coco}; do steps+=("$phase $suite"); done ;;
        *) echo "gpu_check.sh: no phase '$phase': tests, shares, float32, bfloat16, float16" >&2; exit 2 ;;
    esac
done

run_step() { # seconds, file, "tests" or dtype and suite, further options
    if [[ "$3" == tests ]]; then
        local workers=()
        "$python" -c 'import xdist' 2>/dev/null && workers=(-n 8 --dist loadfile)
        TRITON_INTERPRET=0 HYPOTHESIS_PROFILE="${HYPOTHESIS_PROFILE:-ci}" timeout "$1" \
            "$python" -m pytest -q "${workers[@]}" tests/test_kernel_*.py tests/test_gpu.py
    elif [[ "$3" == shares ]]; then # other constants of the kernels' launches
        timeout "$1" "$python" bench/run.py --device cuda --suite shares --json "$2.json"
    else # no op begins in the last seconds; what was measured is written after each
        local plot=()
        "$python" -c 'import matplotlib' 2>/dev/null && plot=(--plot "$2")
        timeout $(($1 + 20)) "$python" bench/run.py --device cuda --dtype "$3" --suite "$4" \
            --minutes "$(awk "BEGIN { print ($1 > 40 ? $1 - 20 : $1 / 2) / 60 }")" \
            --json "$2.json" "${plot[@]}" "${@:5}"
    fi 2>&1 | tee "$2.txt"
    return "${PIPESTATUS[0]}"
}

failed=()
left=${#steps[@]}
for step in "${steps[@]}"; do
    seconds=$(((60 * minutes - SECONDS) / left))
    ((left -= 1))
    echo "== $step (${seconds} s)"
    if ((seconds < 10)); then
        failed+=("$step: no time left")
    else # shellcheck disable=SC2086 # a step's words are arguments
        run_step "$seconds" "$output/${step/ /-}" $step "$@" || failed+=("$step")
    fi
done
echo "results in $output after $((SECONDS / 60)) min $((SECONDS % 60)) s"
if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
