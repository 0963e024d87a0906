#!/bin/sh
# The device's part: sh device.sh BUNDLE. Run again after an interruption: finished engines are kept.
set -eu
bundle=$1

eecompile doctor
eecompile engines "$bundle"
eecompile inspect "$bundle"
for mode in full exact; do
    eecompile run "$bundle" "The first thing to do is" --mode "$mode" --max-new-tokens 32
done
eecompile verify "$bundle" --tokens 16
eecompile bench "$bundle"
eecompile report "$bundle"
