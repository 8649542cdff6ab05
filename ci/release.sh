#!/usr/bin/env bash
# What a release pipeline runs: build, verify with report, inspect, checksums.
#
#   ci/release.sh OUT [SOURCE] [-- BUILD OPTIONS]
#
# SOURCE is a checkpoint folder or a hub id; without one the shipped model is released. What comes out:
#
#   OUT/artifact/     the repository folder, with parity.json, parity.md and parity.html
#   OUT/junit.xml     the verdicts, a suite per file and a case per check
#   OUT/sha256sums    of every file of the folder; check with: cd OUT && sha256sum -c sha256sums
#
# DTYPES        which files, default "fp32 fp16 q8 q4 q4f16"
# VERIFY        further options of verify, such as "--steps 32 --long"; words are split at blanks
# LFM2_EXPORT   the command, default .venv/bin/lfm2-export of this checkout, else the one on the PATH
#
# Exit codes are those of lfm2-export; after 1 everything is written all the same:
#
#     0  good
#     1  the artifact failed: parity, a hash or the contract
#     2  bad input or usage, a full disk, a place that cannot be read or written, a hub that does not answer, or not
#        enough memory
#    70  a fault of lfm2-export itself: the message says where to report it, --traceback shows where it is
#   130  interrupted (Ctrl-C)
#   141  what read its output went away, as head does
#   143  ended by SIGTERM, as a Ctrl-C would
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; }

case ${1:-} in
-h | --help) usage && exit 0 ;;
"" | -*) usage >&2 && exit 2 ;;
esac
out=$1 && shift
source=()
if [ $# -gt 0 ] && [ "$1" != -- ]; then source=("$1") && shift; fi
if [ $# -gt 0 ] && [ "$1" != -- ]; then usage >&2 && exit 2; fi
if [ $# -gt 0 ]; then shift; fi

here=$(cd "$(dirname "$0")/.." && pwd)
tool=${LFM2_EXPORT:-$here/.venv/bin/lfm2-export}
if [ ! -x "$tool" ]; then tool=${LFM2_EXPORT:-lfm2-export}; fi
read -ra dtypes <<<"${DTYPES:-fp32 fp16 q8 q4 q4f16}"
read -ra verify <<<"${VERIFY:-}"

# build.json says where a hub's checkpoint is, at which commit, but not where a folder is.
if [ ${#source[@]} -gt 0 ] && [ -d "${source[0]}" ]; then verify+=(--reference "${source[0]}"); fi

artifact=$out/artifact
{ mkdir -p "$out" && rm -f "$out/junit.xml" "$out/sha256sums"; } || exit 2

# The long verification comes next, so build leaves its quick one out.
"$tool" build ${source[@]+"${source[@]}"} "${dtypes[@]/#/--dtype=}" --no-verify -o "$artifact" "$@"

failed=0
# 0 and 1 are verdicts, after which the rest is still written; any other code ends it here, as this script's own.
judge() {
  local code=0
  "$tool" "$@" || code=$?
  if [ "$code" -gt 1 ]; then
    echo "$1 ended without a verdict (exit code $code)" >&2
    exit "$code"
  fi
  if [ "$code" -eq 1 ]; then failed=1; fi
}
judge verify "$artifact" --junit "$out/junit.xml" ${verify[@]+"${verify[@]}"}
if [ ! -f "$out/junit.xml" ]; then
  echo "verify ended without a verdict (it wrote no $out/junit.xml)" >&2
  exit 70
fi
judge inspect "$artifact"

sum() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }
export -f sum
(
  cd "$out" || exit 2
  find artifact -type f ! -path '*/.*' -print0 | LC_ALL=C sort -z | xargs -0 bash -c 'sum "$@"' sum
) >"$out/sha256sums.partial" && mv "$out/sha256sums.partial" "$out/sha256sums" || exit 2
if [ "$failed" -ne 0 ]; then echo "Not fit for release: see $artifact/parity.md" >&2; fi
exit "$failed"
