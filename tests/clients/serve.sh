#!/bin/sh
# Starts `mgm serve` and runs the clients. Usage: serve.sh MGM PYTHON NODE_FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mgm=$1 python=$2 node_folder=$3
log=$(mktemp)
"$mgm" serve --port 0 --api-key key --parallel 1 --queue 1 >"$log" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$log"' EXIT
until [ -s "$log" ]; do sleep 0.1; done
address=$(head -1 "$log")
until "$python" -c "import urllib.request; urllib.request.urlopen('$address/health')" 2>/dev/null; do sleep 0.2; done
image=$here/../../pocket/examples/shark.png
"$python" "$here/openai_client.py" "$address/v1" key "$image"
# Node.js finds packages from the script's folder.
cp "$here/openai_client.mjs" "$node_folder/"
node "$node_folder/openai_client.mjs" "$address/v1" key "$image"
kill -TERM $server
wait $server
