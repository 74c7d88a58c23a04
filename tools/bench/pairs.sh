#!/bin/bash
# Ratios of user CPU, each the median of pairs that run one after the other, so that a busy machine disturbs both alike.
#
#   VMTAPE_KUT=.../kvm-unit-tests/x86 tools/bench/pairs.sh VMTAPE [OTHER]
#
# VMTAPE is the program to be measured, its plugins beside it; OTHER, if given, an older one to compare it with. QEMU's TCG is
# compared with where qemu-system-x86_64 is installed.
set -u
vmtape=$1 other=${2:-} kut=${VMTAPE_KUT:?} pairs=${PAIRS:-5}
dir=$(mktemp -d) && trap 'rm -r "$dir"' EXIT

# Seconds of user CPU.
cpu() { local TIMEFORMAT=%U; { time "$@" >"$dir/out" 2>&1 </dev/null; } 2>&1; }

# row NAME COMMAND COMMAND: the first one's time by the second one's. Commands are names of functions.
row() {
    local name=$1 ratios
    ratios=$(for _ in $(seq "$pairs"); do echo "$(cpu $2) $(cpu $3)"; done | awk '$2 > 0 { print $1 / $2, $1, $2 }' | sort -n)
    echo "$ratios" | awk -v name="$name" '{ line[NR] = $0 }
        END { split(line[int((NR + 1) / 2)], m, " "); printf "| %s | %.2f | %.2f s | %.2f s |\n", name, m[1], m[2], m[3] }'
}

svm="-b svm --host amd-48 --cpu max,-pku -m 512M" npt="-b svm-npt --host amd-48 -m 512M" vmx="-b vmx -m 512M"
sieve() { "$1" "${@:2}" -q $vmx --max-insns 400000000 "$kut/sieve.flat"; }
cpuid() { "$1" "${@:2}" -q --max-exits 300000 "$kut/vmexit.flat" --append cpuid; }
vmrun() { "$1" "${@:2}" -q $npt --cpu max,+svm --max-exits 400000 "$kut/svm.flat" --append latency_run_exit; }
access() { "$1" "${@:2}" -q $svm --max-insns 40000000 "$kut/access_test.flat"; }
guest() { "$vmtape" run -q -b vmx --host intel-48 -m 512M "$kut/$1.flat"; }
tcg() {
    timeout 300 qemu-system-x86_64 -nodefaults -vnc none -serial stdio -no-reboot -m 512 -cpu max,-la57 -accel tcg,thread=single \
        -device pc-testdev -device isa-debug-exit,iobase=0xf4,iosize=0x4 -kernel "$kut/$1.flat"
}
# What each row runs, for both programs.
new() { "$run" "$vmtape"; }
old() { "$run" "$other"; }
run_sieve() { sieve "$1" run; }
record_sieve() { sieve "$1" record -o "$dir/sieve.tape"; }
run_cpuid() { cpuid "$1" run $vmx; }
record_cpuid() { cpuid "$1" record -o "$dir/cpuid.tape" $npt; }
run_vmrun() { vmrun "$1" run; }
record_vmrun() { vmrun "$1" record -o "$dir/vmrun.tape"; }
run_access() { access "$1" run; }
record_access() { access "$1" record -o "$dir/access.tape"; }
exits_cpuid() { "$1" replay --mode exits "$dir/cpuid-${1//\//_}.tape"; }

echo "| row | ratio | first | second |"
echo "|---|---|---|---|"
if [ -n "$other" ]; then
    for program in "$vmtape" "$other"; do cpuid "$program" record -o "$dir/cpuid-${program//\//_}.tape" $npt >"$dir/out" 2>&1; done
    for run in run_sieve record_sieve run_cpuid record_cpuid run_vmrun record_vmrun run_access record_access exits_cpuid; do
        row "\`$run\`: this program / the other" new old
    done
fi
recorded() { "record_$what" "$vmtape"; }
unrecorded() { "run_$what" "$vmtape"; }
replayed() { "$vmtape" replay "$dir/$what.tape"; }
for what in sieve access vmrun; do
    row "$what: recorded / not recorded" recorded unrecorded
    row "$what: replayed by running / recorded" replayed recorded
done
if command -v qemu-system-x86_64 >"$dir/out"; then
    ours() { guest "$what"; }
    qemu() { tcg "$what"; }
    for what in sieve smap xsave rmap_chain; do row "$what.flat: vmtape / TCG" ours qemu; done
fi
