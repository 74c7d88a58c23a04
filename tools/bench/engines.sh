#!/bin/bash
# User CPU of the interpreter, of the compiler and of QEMU's TCG on the same guests, run one after the other in each round, so that a busy
# machine disturbs all alike; ratios are the medians of the rounds.
#
#   [VMTAPE_KUT=.../kvm-unit-tests/x86] [QEMU=qemu-system-x86_64] tools/bench/engines.sh VMTAPE
#
# VMTAPE is the program to be measured, its plugins beside it.
set -u
vmtape=$1 qemu=${QEMU:-qemu-system-x86_64} rounds=${ROUNDS:-3}
dir=$(mktemp -d) && trap 'rm -r "$dir"' EXIT

# Seconds of user CPU.
cpu() { local TIMEFORMAT=%U; { time "$@" >"$dir/out" 2>&1 </dev/null; } 2>&1; }

ours() { timeout 300 "$vmtape" run -q -b vmx --host intel-48 -m 512M --engine "$1" "$2"; }
tcg() {
    timeout 300 "$qemu" -nodefaults -vnc none -serial stdio -no-reboot -m 512 -cpu max,-la57 -accel tcg,thread=single \
        -device pc-testdev -device isa-debug-exit,iobase=0xf4,iosize=0x4 -kernel "$1"
}

# The median of an expression over the rounds.
median() { awk "{ print $1 }" "$dir/times" | sort -n | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

# row NAME GUEST IMAGE
row() {
    for _ in $(seq "$rounds"); do
        echo "$(cpu ours interp "$2") $(cpu ours jit "$2") $(cpu tcg "$3")"
    done >"$dir/times"
    printf '| %s | %.2f s | %.2f s | %.2f s | %.1f | %.2f | %.2f |\n' "$1" "$(median '$1')" "$(median '$2')" "$(median '$3')" \
        "$(median '$1 / $2')" "$(median '$1 / $3')" "$(median '$2 / $3')"
}

echo "| row | interp | jit | TCG | interp / jit | interp / TCG | jit / TCG |"
echo "|---|---|---|---|---|---|---|"
for work in bytes,rounds=${BYTES:-2000} sort,rounds=${SORT:-1000} crc,rounds=${CRC:-2000} walks,rounds=${WALKS:-1000}; do
    guest=work,what=$work
    "$vmtape" guests --export "$guest" -o "$dir/guest.flat" || exit 1
    row "\`$guest\`" "builtin:$guest" "$dir/guest.flat"
done
if [ -n "${VMTAPE_KUT:-}" ]; then
    for test in sieve smap xsave rmap_chain; do row "\`$test.flat\`" "$VMTAPE_KUT/$test.flat" "$VMTAPE_KUT/$test.flat"; done
fi
