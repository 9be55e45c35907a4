#!/bin/sh
# Prints one line that names every missing build tool and the Debian packages to install; prints nothing when all are there.
#   tools.sh NAME...
missing=
packages=
for tool in "$@"; do
  command -v "$tool" >/dev/null 2>&1 && continue
  case $tool in
    node) package=nodejs ;;
    *) package=$tool ;;
  esac
  missing="${missing:+$missing, }$tool"
  packages="${packages:+$packages }$package"
done
[ -z "$missing" ] || echo "Cannot build metalora: not found on this machine: $missing. Install with: apt-get install $packages"
