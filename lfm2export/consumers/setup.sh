#!/usr/bin/env bash
# Install everything that check-consumers runs: npm's packages, a Chromium, onnxruntime-genai, OpenVINO, a software Vulkan.
# Runs again at no cost: what is there already stays. Fails with the line that installs what it may not install itself.
#
#   PYTHON=.venv/bin/python setup.sh [--without-lavapipe]
set -euo pipefail
python="$(command -v "${PYTHON:-python3}")" # the Python that lfm2export is installed in
[ "${python#/}" != "$python" ] || python="$PWD/$python"
cd "$(dirname "$0")"
tools="$PWD/.tools"
mkdir -p "$tools"

say() { printf 'consumers: %s\n' "$*"; }
fail() { printf 'consumers: %s\n' "$*" >&2; exit 1; }

node_packages() {
    command -v node >/dev/null && command -v npm >/dev/null || fail "Node 20 or newer with npm is needed: install nodejs and npm"
    node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' || fail "Node 20 or newer is needed, this is $(node --version)"
    if ! cmp -s js/package-lock.json "$tools/package-lock.json" || [ ! -d js/node_modules ]; then
        say "npm ci"
        (cd js && ONNXRUNTIME_NODE_INSTALL=skip npm ci --no-audit --no-fund --loglevel=error)
        cp js/package-lock.json "$tools/package-lock.json"
    fi
}

browser() {
    local name
    [ -n "${CHROMIUM:-}" ] && [ -x "$CHROMIUM" ] && return
    for name in chromium chromium-browser google-chrome-stable google-chrome chrome; do
        command -v "$name" >/dev/null && return
    done
    [ -x "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" ] && return
    command -v apt-get >/dev/null || fail "no Chromium or Chrome found: install one, or set CHROMIUM to its path"
    [ "$(id -u)" = 0 ] || fail "no Chromium or Chrome found: run 'sudo apt-get install chromium', or set CHROMIUM to its path"
    say "apt-get install chromium"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
}

genai() {
    if ! cmp -s requirements-genai.txt "$tools/genai/requirements.txt"; then
        say "onnxruntime-genai in .tools/genai"
        rm -rf "$tools/genai"
        "$python" -m venv "$tools/genai"
        "$tools/genai/bin/python" -m pip install --quiet -r requirements-genai.txt
        cp requirements-genai.txt "$tools/genai/requirements.txt"
    fi
}

openvino() {
    if ! cmp -s requirements-openvino.txt "$tools/openvino/requirements.txt"; then
        say "OpenVINO in .tools/openvino"
        rm -rf "$tools/openvino"
        "$python" -m venv "$tools/openvino"
        "$tools/openvino/bin/python" -m pip install --quiet --no-deps -r requirements-openvino.txt
        cp requirements-openvino.txt "$tools/openvino/requirements.txt"
    fi
}

# The oldest onnxruntime that runs every file, in front of the packages that the tool itself has.
oldest_onnxruntime() {
    local target="$tools/onnxruntime-oldest" site
    site="$("$python" -c 'import onnxruntime, pathlib; print(pathlib.Path(onnxruntime.__file__).parent.parent)' 2>/dev/null)" ||
        fail "$python has no onnxruntime: set PYTHON to the Python that lfm2export is installed in"
    if ! cmp -s requirements-oldest.txt "$target/requirements.txt"; then
        say "the oldest onnxruntime in .tools/onnxruntime-oldest"
        rm -rf "$target"
        "$python" -m venv "$target"
        "$target/bin/python" -m pip install --quiet -r requirements-oldest.txt
        "$target/bin/python" -c 'import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "zz_lfm2export.pth").write_text(sys.argv[1] + "\n")' "$site"
        cp requirements-oldest.txt "$target/requirements.txt"
    fi
}

# Mesa's lavapipe computes in float16, which Chromium's own software adapter does not. Debian 12 has it in its backports; it is
# unpacked beside, never installed. Where that is not possible Node's WebGPU is reported as not run.
lavapipe() {
    [ -f "$tools/lavapipe/lvp_icd.json" ] && return
    local why="software Vulkan is left out (Node's WebGPU is then not run)"
    if ! grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || [ "$(dpkg --print-architecture 2>/dev/null)" != amd64 ]; then
        say "$why: this is not Debian 12 on amd64"
        return
    fi
    local mirror
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Component: main' 2>/dev/null | head -n 1)"
    if [ -z "$mirror" ]; then
        say "$why: apt has no Debian mirror to ask for backports"
        return
    fi
    local state="$tools/apt" packages
    rm -rf "$state" "$tools/lavapipe"
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/debs" "$tools/lavapipe/root"
    printf "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror %s main\n" \
        bookworm bookworm-backports >"$state/sources.list"
    local options=(-qq -o "Dir::Etc::SourceList=$state/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$state/lists" -o "Dir::Cache=$state/cache" -o APT::Sandbox::User=root)
    packages="mesa-vulkan-drivers/bookworm-backports libvulkan1 libllvm15 libdrm-amdgpu1 libdrm2 libelf1 libexpat1
        libwayland-client0 libx11-xcb1 libxcb-dri3-0 libxcb-present0 libxcb-randr0 libxcb-shm0 libxcb-sync1 libxcb-xfixes0
        libxcb1 libxshmfence1 libzstd1 libz3-4 libedit2 libbsd0 libmd0 libxml2 libicu72 libtinfo6 libffi8 libxau6 libxdmcp6"
    say "Mesa's software Vulkan in .tools/lavapipe"
    # shellcheck disable=SC2086
    if ! apt-get "${options[@]}" update || ! (cd "$state/debs" && apt-get "${options[@]}" download $packages); then
        rm -rf "$state" "$tools/lavapipe"
        say "$why: Debian's backports cannot be reached"
        return
    fi
    local package
    for package in "$state"/debs/*.deb; do dpkg-deb -x "$package" "$tools/lavapipe/root"; done
    rm -rf "$state"
    printf '{"ICD": {"api_version": "1.4.305", "library_path": "%s"}, "file_format_version": "1.0.0"}\n' \
        ./root/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so >"$tools/lavapipe/lvp_icd.json"
}

node_packages
browser
genai
openvino
oldest_onnxruntime
[ "${1:-}" = --without-lavapipe ] || lavapipe
say "ready"
