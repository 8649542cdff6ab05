#!/usr/bin/env bash
# Install the peers of the benchmarks in benchmarks/.peers: the genai builder, and llama.cpp compiled from its source package
# (about 20 minutes of one core). Runs again at no cost: an environment that fits its requirements file stays.
#
#   PYTHON=.venv/bin/python benchmarks/peers/setup.sh [genai] [llama]
#
# An environment that exists elsewhere is used instead with LFM2EXPORT_PEER_GENAI=FOLDER or LFM2EXPORT_PEER_LLAMA=FOLDER,
# the folder that holds bin/python.
set -euo pipefail
python="$(command -v "${PYTHON:-python3}")"
[ "${python#/}" != "$python" ] || python="$PWD/$python"
cd "$(dirname "$0")"
peers="$(cd .. && pwd)/.peers"
mkdir -p "$peers"

say() { printf 'peers: %s\n' "$*"; }

install() {
    local name="$1" folder="$peers/$1"
    cmp -s "requirements-$name.txt" "$folder/requirements.txt" && return
    say "$name in $folder"
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet -r "requirements-$name.txt"
    cp "requirements-$name.txt" "$folder/requirements.txt"
}

# ggml's AMX path can crash at the first token in a virtual machine, so where AVX-512 is complete it is asked for by name
# instead of whatever the processor has.
cmake_arguments() {
    if grep -q avx512_bf16 /proc/cpuinfo 2>/dev/null && grep -q avx512_vnni /proc/cpuinfo && grep -q avx512vbmi /proc/cpuinfo; then
        printf -- '-DGGML_NATIVE=OFF'
        printf -- ' -DGGML_%s=ON' AVX512 AVX512_VNNI AVX512_VBMI AVX512_BF16 AVX2 FMA F16C BMI2
    else
        printf -- '-DGGML_NATIVE=ON'
    fi
}

for name in ${*:-genai llama}; do
    case "$name" in
        genai) install genai ;;
        llama) CMAKE_ARGS="${CMAKE_ARGS:-$(cmake_arguments)}" install llama ;;
        *) say "unknown peer $name, expected genai or llama" >&2; exit 2 ;;
    esac
done
say "ready"
