#!/usr/bin/env bash
# Chromium for the tests of the report page, from Debian's packages. Without it these tests are skipped, with a reason.
set -euo pipefail

if command -v chromium >/dev/null; then
  chromium --version
  exit
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo 'no chromium, and no right to install it: the page is not opened in a browser'
  exit
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -qq -y --no-install-recommends chromium >/dev/null; }
if install 2>/dev/null || { apt-get update -qq && install; }; then
  chromium --version
else
  echo 'chromium cannot be installed: the page is not opened in a browser'
fi
