#!/bin/sh
# Fetches the pinned Deno from the npm registry into FOLDER/deno, after checking its hash. FOLDER appears whole or not at all.
#   deno.sh FOLDER MACHINE      (MACHINE as `uname -m` prints it)
set -eu
folder=$1
machine=$2
here=$(cd "$(dirname "$0")" && pwd)

fail() {
  echo "Cannot set up Deno: $1" >&2
  exit 2
}

set -- $(grep "^$machine " "$here/deno.pins" || true)
[ $# -eq 4 ] || fail "no pinned build for $(uname -s) on $machine. Install Deno 2.5 or newer yourself and run: make DENO=/path/to/deno"
package=$2 version=$3 wanted=$4
[ ! -x "$folder/deno" ] || exit 0

mkdir -p "$(dirname "$folder")"
scratch=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

echo "Fetching Deno $version ($package) from the npm registry" >&2
(cd "$scratch" && npm pack --loglevel=error --pack-destination . "$package@$version" >/dev/null 2>npm.log) ||
  fail "npm could not fetch $package@$version: $(sed -n 's/^npm error //p; s/^npm ERR! //p' "$scratch/npm.log" | grep -vE '^(code|syscall|errno|network) ' | head -n 1). Check the network and 'npm config get registry'"
archive=$(ls "$scratch"/*.tgz)
found=$(node -e 'const h = require("crypto").createHash("sha512"); h.update(require("fs").readFileSync(process.argv[1])); console.log("sha512-" + h.digest("base64"))' "$archive")
[ "$found" = "$wanted" ] || fail "$package@$version has the hash $found instead of $wanted. The download is damaged or was tampered with"

mkdir "$scratch/unpacked"
tar -xzf "$archive" -C "$scratch/unpacked" --strip-components=1
chmod 755 "$scratch/unpacked/deno"
"$scratch/unpacked/deno" --version >/dev/null 2>&1 || fail "the downloaded program does not start on this machine ($machine, glibc needed)"
# Another make may have finished first: then its folder stands and this copy goes away with the scratch folder.
mv -T "$scratch/unpacked" "$folder" 2>/dev/null || [ -x "$folder/deno" ]
