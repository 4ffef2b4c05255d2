#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Runs every command that the book shows and writes what it printed to book/src/output/, from where the chapters include it.
# The prose names figures of these files: read it again after `git diff book/src/output`.
set -euo pipefail
cd "$(dirname "$0")/.."
out=book/src/output
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# Waits until the console has shown the prompt $1 times.
prompts() {
    for _ in $(seq 600); do
        [ "$(grep -ao 'springboard> ' "$work/console" | wc -l)" -lt "$1" ] || return 0
        sleep 0.2
    done
    echo "capture: the shell shows no prompt" >&2
    return 1
}

# shell FILE COMMAND...: types the commands into the shell and keeps the dialogue, without what draws the line.
shell() {
    local file=$1 shown=1 command
    shift
    mkfifo "$work/keys"
    : >"$work/console"
    cargo xtask shell <"$work/keys" >"$work/console" 2>"$work/errors" &
    exec 3>"$work/keys"
    for command in "$@" poweroff; do
        prompts "$shown"
        printf '%s\n' "$command" >&3
        shown=$((shown + 1))
    done
    exec 3>&-
    wait $!
    rm "$work/keys"
    sed -e 's/\r//g' -e 's/\x1b\[[0-9]*[CK]//g' "$work/console" | sed -e '1,2d' -e '/^springboard> poweroff/,$d' >"$out/$file"
}

# command FILE COMMAND: keeps what a command prints.
command() {
    bash -c "$2" >"$out/$1" 2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
}

command run.txt 'cargo xtask run'
command sites.txt 'cargo xtask sites'
command notrace.txt "cargo xtask notrace | grep -e 'hook::Count' -e 'springboard::trace::write ' -e ' functions;'"
command raspi3b.txt 'cargo xtask run --board raspi3b'
shell site.txt 'functions workload_' 'show workload_call' 'attach count springboard::trace::write' 'attach count worklod_call'
shell patching.txt 'show workload_call' 'attach count workload_call' 'show workload_call' 'call 1000' 'map dump count.calls' \
    'detach workload_call' 'call 1000' 'map dump count.calls' 'show workload_call'
shell trampoline.txt 'attach empty workload_call word' 'show workload_call'
shell several.txt 'attach empty workload_call word' 'attach count workload_call' 'show workload_call' 'hooks' 'detach 1' 'show workload_call'
shell exit.txt 'attach hooks/fexit_count workload_call' 'show workload_call' 'call 1000' 'map dump hooks.calls' 'hooks'
shell exit-modify.txt 'attach hooks/fentry_empty workload_call word' 'attach hooks/fmod_ret_empty workload_call word' \
    'attach hooks/fexit_empty workload_call word' 'show workload_call' 'hooks' 'detach 3' \
    'detach workload_call' 'integrity'
shell recursion.txt 'attach again workload_call native' 'attach count workload_call' 'call 100' 'hooks' 'map dump count.calls'
shell recursion-helper.txt 'attach recursion/probe workload_call linux-kprobe' 'call 100' 'hooks' 'map dump recursion.counts' 'detach 1' \
    'attach recursion/at_entry workload_call none'
command recursion-trap.txt '! cargo xtask run crash=hook-allocates'
command grace-stall.txt 'cargo xtask run -- test test=grace.a_stall_shows_where_the_task_is'
command grace-torture.txt 'cargo xtask torture --minutes 1'
shell replace.txt 'call 3' 'replace workload_call workload_call_other' 'show workload_call' 'call 3' 'attach count workload_call' \
    'call 3' 'hooks' 'replace workload_call workload_call_more' 'replace workload_six workload_call' 'integrity' 'detach workload_call' 'call 3'
shell replace-program.txt 'attach replace/twice workload_call' 'call 3' 'attach replace/product workload_call' 'detach workload_call' \
    'attach replace/product workload_call' 'show workload_call'
shell replace-patch.txt 'patch' 'patch rotate' 'call 1000 workload_exchange' 'patch' 'show workload_encode' 'hooks' 'detach workload_encode' \
    'call 1000 workload_exchange' 'patch'
shell replace-rule.txt 'attach rules workload_call' 'call 5' 'map dump rules..bss' 'freplace replace_rule/tenfold 1' 'call 5' \
    'map dump rules..bss' 'hooks' 'freplace replace_rule/narrow 1' 'detach 1' 'hooks'
objects=target/springboard/programs
command instructions.txt "cargo xtask bpf disasm $objects/count.bpf.o"
command instructions-info.txt "cargo xtask bpf info $objects/count.bpf.o"
command instructions-filter.txt "cargo xtask bpf disasm $objects/filter.bpf.o"
command interpreter.txt "cargo xtask bpf run $objects/count.bpf.o; echo; cargo xtask bpf run $objects/filter.bpf.o --memory 2a00000000000000"
command interpreter-refusal.txt "! cargo --quiet xtask bpf run $objects/filter.bpf.o 2>&1"
command interpreter-suite.txt 'cargo xtask bench --suite interpreter'
command jit.txt "cargo xtask bpf jit $objects/count.bpf.o"
command jit-suite.txt 'cargo xtask bench --suite jit'
