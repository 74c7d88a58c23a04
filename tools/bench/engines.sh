#!/bin/bash
# User CPU of the interpreter, of the compiler and of QEMU's TCG on the same guests, and of both programs' recordings and replays, run one
# after the other in each round, so that a busy machine disturbs all alike; ratios are the medians of the rounds.
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
# tcg IMAGE [OPTION...]
tcg() {
    timeout 300 "$qemu" -nodefaults -vnc none -serial stdio -no-reboot -m 512 -cpu max,-la57 -accel tcg,thread=single \
        -device pc-testdev -device isa-debug-exit,iobase=0xf4,iosize=0x4 -kernel "$@"
}
record() { timeout 300 "$vmtape" record -q -b vmx --host intel-48 -m 512M --engine jit -o "$dir/tape" "$1"; }
replay() { timeout 300 "$vmtape" replay -q --engine jit "$dir/tape"; }
# rr record|replay IMAGE
rr() { tcg "$2" -icount "shift=auto,rr=$1,rrfile=$dir/rr"; }

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

# pair NAME GUEST IMAGE
pair() {
    for _ in $(seq "$rounds"); do
        echo "$(cpu record "$2") $(cpu rr record "$3") $(cpu replay) $(cpu rr replay "$3")"
    done >"$dir/times"
    printf '| %s | %.2f s | %.2f s | %.2f | %.2f s | %.2f s | %.2f |\n' "$1" "$(median '$1')" "$(median '$2')" "$(median '$1 / $2')" \
        "$(median '$3')" "$(median '$4')" "$(median '$3 / $4')"
}

works="bytes,rounds=${BYTES:-2000} sort,rounds=${SORT:-6000} crc,rounds=${CRC:-2000} floats,rounds=${FLOATS:-4000}
    copy,rounds=${COPY:-1000} walks,rounds=${WALKS:-600} exceptions,rounds=${EXCEPTIONS:-200} ports,rounds=${PORTS:-100}
    cpuid,rounds=${CPUID:-100}"
# each FUNCTION
each() {
    for work in $works; do
        guest=work,what=$work
        "$vmtape" guests --export "$guest" -o "$dir/guest.flat" || exit 1
        "$1" "\`$guest\`" "builtin:$guest" "$dir/guest.flat"
    done
    if [ -n "${VMTAPE_KUT:-}" ]; then
        for test in sieve smap xsave rmap_chain; do
            "$1" "\`$test.flat\`" "$VMTAPE_KUT/$test.flat" "$VMTAPE_KUT/$test.flat"
        done
    fi
}

echo "| row | interp | jit | TCG | interp / jit | interp / TCG | jit / TCG |"
echo "|---|---|---|---|---|---|---|"
each row
echo
echo "| row | recorded (jit) | rr=record | ratio | replayed (jit) | rr=replay | ratio |"
echo "|---|---|---|---|---|---|---|"
each pair
