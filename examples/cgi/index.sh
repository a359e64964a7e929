#!/bin/sh
# Run it with `rip-server examples/cgi w:4`: one process a request, and nothing to install.
echo 'Content-Type: text/plain'
echo
echo "Hello from $PATH_INFO"
