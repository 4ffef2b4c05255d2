// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of helpers, by Linux's numbers (`___BPF_FUNC_MAPPER` in `linux/bpf.h`), and which of them only programs under a
//! licence compatible with the GPL may call (Linux's `gpl_only`), and which may sleep.
#![forbid(unsafe_code)]

use super::{
    Argument, Function, Helper, Returns,
    attached::{
        get_attach_cookie, get_func_arg, get_func_arg_cnt, get_func_ip, get_func_ret,
        override_return,
    },
    dynptr::{
        dynptr_data, dynptr_from_mem, dynptr_read, dynptr_write, ringbuf_discard_dynptr,
        ringbuf_reserve_dynptr, ringbuf_submit_dynptr,
    },
    lock::{spin_lock, spin_unlock},
    map::{
        bpf_loop, for_each_map_elem, map_delete_elem, map_lookup_elem, map_lookup_percpu_elem,
        map_peek_elem, map_pop_elem, map_push_elem, map_update_elem, ringbuf_discard,
        ringbuf_output, ringbuf_query, ringbuf_reserve, ringbuf_submit, task_storage_delete,
        task_storage_get,
    },
    print::{snprintf, trace_printk, trace_vprintk},
    probe::{copy_from_user, probe_read_kernel, probe_read_kernel_str, probe_read_user, strncmp},
    random::get_prandom_u32,
    stack::{get_stack, get_stackid},
    task::{
        get_current_comm, get_current_pid_tgid, get_current_task, get_current_uid_gid,
        get_numa_node_id, get_smp_processor_id, jiffies64, ktime_get_boot_ns, ktime_get_coarse_ns,
        ktime_get_ns, per_cpu_ptr, this_cpu_ptr,
    },
};

/// All helpers, by number.
pub static HELPERS: &[Helper] = {
    use Argument::{
        Any, Callback, ConstantSize, ConstantString, Context, Dynptr, DynptrOut, DynptrRecord, Map,
        MapKey, MapValue, MapValueOrNull, MapValueOut, Memory, MemoryOrNull, MemoryOut,
        MemoryOutOrNull, PerCpu, Record, Scalar, Size, SizeOrZero, SpinLock, Task, ValueMemory,
        WordOut,
    };
    &[
        Helper::new(
            1,
            "bpf_map_lookup_elem",
            &[Map, MapKey],
            Returns::MapValueOrNull,
            Function::Plain(map_lookup_elem),
        ),
        Helper::new(
            2,
            "bpf_map_update_elem",
            &[Map, MapKey, MapValue, Scalar],
            Returns::Scalar,
            Function::Plain(map_update_elem),
        ),
        Helper::new(
            3,
            "bpf_map_delete_elem",
            &[Map, MapKey],
            Returns::Scalar,
            Function::Plain(map_delete_elem),
        ),
        Helper::new(
            4,
            "bpf_probe_read",
            &[MemoryOut, SizeOrZero, Any],
            Returns::Scalar,
            Function::Plain(probe_read_kernel),
        )
        .gpl_only(),
        Helper::new(
            5,
            "bpf_ktime_get_ns",
            &[],
            Returns::Scalar,
            Function::Plain(ktime_get_ns),
        ),
        Helper::new(
            6,
            "bpf_trace_printk",
            &[Memory, Size, Any, Any, Any],
            Returns::Scalar,
            Function::Plain(trace_printk),
        )
        .gpl_only(),
        Helper::new(
            7,
            "bpf_get_prandom_u32",
            &[],
            Returns::Scalar,
            Function::Plain(get_prandom_u32),
        ),
        Helper::new(
            8,
            "bpf_get_smp_processor_id",
            &[],
            Returns::Scalar,
            Function::Plain(get_smp_processor_id),
        ),
        Helper::new(
            12,
            "bpf_tail_call",
            &[Context, Map, Scalar],
            Returns::Scalar,
            Function::Engine,
        ),
        Helper::new(
            14,
            "bpf_get_current_pid_tgid",
            &[],
            Returns::Scalar,
            Function::Plain(get_current_pid_tgid),
        ),
        Helper::new(
            15,
            "bpf_get_current_uid_gid",
            &[],
            Returns::Scalar,
            Function::Plain(get_current_uid_gid),
        ),
        Helper::new(
            16,
            "bpf_get_current_comm",
            &[MemoryOut, Size],
            Returns::Scalar,
            Function::Plain(get_current_comm),
        ),
        Helper::new(
            27,
            "bpf_get_stackid",
            &[Context, Map, Scalar],
            Returns::Scalar,
            Function::Plain(get_stackid),
        )
        .gpl_only(),
        Helper::new(
            35,
            "bpf_get_current_task",
            &[],
            Returns::Scalar,
            Function::Plain(get_current_task),
        )
        .gpl_only(),
        Helper::new(
            42,
            "bpf_get_numa_node_id",
            &[],
            Returns::Scalar,
            Function::Plain(get_numa_node_id),
        ),
        Helper::new(
            45,
            "bpf_probe_read_str",
            &[MemoryOut, SizeOrZero, Any],
            Returns::Scalar,
            Function::Plain(probe_read_kernel_str),
        )
        .gpl_only(),
        Helper::new(
            58,
            "bpf_override_return",
            &[Context, Scalar],
            Returns::Scalar,
            Function::Plain(override_return),
        )
        .gpl_only(),
        Helper::new(
            67,
            "bpf_get_stack",
            &[Context, MemoryOut, SizeOrZero, Scalar],
            Returns::Scalar,
            Function::Plain(get_stack),
        )
        .gpl_only(),
        Helper::new(
            87,
            "bpf_map_push_elem",
            &[Map, MapValue, Scalar],
            Returns::Scalar,
            Function::Plain(map_push_elem),
        ),
        Helper::new(
            88,
            "bpf_map_pop_elem",
            &[Map, MapValueOut],
            Returns::Scalar,
            Function::Plain(map_pop_elem),
        ),
        Helper::new(
            89,
            "bpf_map_peek_elem",
            &[Map, MapValueOut],
            Returns::Scalar,
            Function::Plain(map_peek_elem),
        ),
        Helper::new(
            93,
            "bpf_spin_lock",
            &[SpinLock],
            Returns::Scalar,
            Function::Plain(spin_lock),
        ),
        Helper::new(
            94,
            "bpf_spin_unlock",
            &[SpinLock],
            Returns::Scalar,
            Function::Plain(spin_unlock),
        ),
        Helper::new(
            112,
            "bpf_probe_read_user",
            &[MemoryOut, SizeOrZero, Any],
            Returns::Scalar,
            Function::Plain(probe_read_user),
        )
        .gpl_only(),
        Helper::new(
            113,
            "bpf_probe_read_kernel",
            &[MemoryOut, SizeOrZero, Any],
            Returns::Scalar,
            Function::Plain(probe_read_kernel),
        )
        .gpl_only(),
        Helper::new(
            114,
            "bpf_probe_read_user_str",
            &[MemoryOut, SizeOrZero, Any],
            Returns::Scalar,
            Function::Plain(probe_read_user),
        )
        .gpl_only(),
        Helper::new(
            115,
            "bpf_probe_read_kernel_str",
            &[MemoryOut, SizeOrZero, Any],
            Returns::Scalar,
            Function::Plain(probe_read_kernel_str),
        )
        .gpl_only(),
        Helper::new(
            118,
            "bpf_jiffies64",
            &[],
            Returns::Scalar,
            Function::Plain(jiffies64),
        ),
        Helper::new(
            125,
            "bpf_ktime_get_boot_ns",
            &[],
            Returns::Scalar,
            Function::Plain(ktime_get_boot_ns),
        ),
        Helper::new(
            130,
            "bpf_ringbuf_output",
            &[Map, MemoryOrNull, SizeOrZero, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_output),
        ),
        Helper::new(
            131,
            "bpf_ringbuf_reserve",
            &[Map, ConstantSize, Scalar],
            Returns::RecordOrNull,
            Function::Plain(ringbuf_reserve),
        ),
        Helper::new(
            132,
            "bpf_ringbuf_submit",
            &[Record, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_submit),
        ),
        Helper::new(
            133,
            "bpf_ringbuf_discard",
            &[Record, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_discard),
        ),
        Helper::new(
            134,
            "bpf_ringbuf_query",
            &[Map, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_query),
        ),
        Helper::new(
            148,
            "bpf_copy_from_user",
            &[MemoryOut, SizeOrZero, Any],
            Returns::Scalar,
            Function::Plain(copy_from_user),
        )
        .sleeps(),
        Helper::new(
            153,
            "bpf_per_cpu_ptr",
            &[PerCpu, Scalar],
            Returns::PerCpuOrNull,
            Function::Plain(per_cpu_ptr),
        ),
        Helper::new(
            154,
            "bpf_this_cpu_ptr",
            &[PerCpu],
            Returns::PerCpu,
            Function::Plain(this_cpu_ptr),
        ),
        Helper::new(
            156,
            "bpf_task_storage_get",
            &[Map, Task, MapValueOrNull, Scalar],
            Returns::MapValueOrNull,
            Function::Plain(task_storage_get),
        ),
        Helper::new(
            157,
            "bpf_task_storage_delete",
            &[Map, Task],
            Returns::Scalar,
            Function::Plain(task_storage_delete),
        ),
        Helper::new(
            158,
            "bpf_get_current_task_btf",
            &[],
            Returns::Task,
            Function::Plain(get_current_task),
        )
        .gpl_only(),
        Helper::new(
            160,
            "bpf_ktime_get_coarse_ns",
            &[],
            Returns::Scalar,
            Function::Plain(ktime_get_coarse_ns),
        ),
        Helper::new(
            164,
            "bpf_for_each_map_elem",
            &[Map, Callback, Any, Scalar],
            Returns::Scalar,
            Function::Callback(for_each_map_elem),
        ),
        Helper::new(
            165,
            "bpf_snprintf",
            &[
                MemoryOutOrNull,
                SizeOrZero,
                ConstantString,
                MemoryOrNull,
                SizeOrZero,
            ],
            Returns::Scalar,
            Function::Plain(snprintf),
        )
        .gpl_only(),
        Helper::new(
            173,
            "bpf_get_func_ip",
            &[Context],
            Returns::Scalar,
            Function::Attached(get_func_ip),
        )
        .gpl_only(),
        Helper::new(
            174,
            "bpf_get_attach_cookie",
            &[Context],
            Returns::Scalar,
            Function::Attached(get_attach_cookie),
        ),
        Helper::new(
            177,
            "bpf_trace_vprintk",
            &[Memory, Size, MemoryOrNull, SizeOrZero],
            Returns::Scalar,
            Function::Plain(trace_vprintk),
        )
        .gpl_only(),
        Helper::new(
            181,
            "bpf_loop",
            &[Scalar, Callback, Any, Scalar],
            Returns::Scalar,
            Function::Callback(bpf_loop),
        ),
        Helper::new(
            182,
            "bpf_strncmp",
            &[Memory, Size, ConstantString],
            Returns::Scalar,
            Function::Plain(strncmp),
        ),
        Helper::new(
            183,
            "bpf_get_func_arg",
            &[Context, Scalar, WordOut],
            Returns::Scalar,
            Function::Attached(get_func_arg),
        ),
        Helper::new(
            184,
            "bpf_get_func_ret",
            &[Context, WordOut],
            Returns::Scalar,
            Function::Attached(get_func_ret),
        ),
        Helper::new(
            185,
            "bpf_get_func_arg_cnt",
            &[Context],
            Returns::Scalar,
            Function::Attached(get_func_arg_cnt),
        ),
        Helper::new(
            195,
            "bpf_map_lookup_percpu_elem",
            &[Map, MapKey, Scalar],
            Returns::MapValueOrNull,
            Function::Plain(map_lookup_percpu_elem),
        ),
        Helper::new(
            197,
            "bpf_dynptr_from_mem",
            &[ValueMemory, SizeOrZero, Scalar, DynptrOut],
            Returns::Scalar,
            Function::Plain(dynptr_from_mem),
        ),
        Helper::new(
            198,
            "bpf_ringbuf_reserve_dynptr",
            &[Map, Scalar, Scalar, DynptrOut],
            Returns::Scalar,
            Function::Plain(ringbuf_reserve_dynptr),
        ),
        Helper::new(
            199,
            "bpf_ringbuf_submit_dynptr",
            &[DynptrRecord, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_submit_dynptr),
        ),
        Helper::new(
            200,
            "bpf_ringbuf_discard_dynptr",
            &[DynptrRecord, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_discard_dynptr),
        ),
        Helper::new(
            201,
            "bpf_dynptr_read",
            &[MemoryOut, SizeOrZero, Dynptr, Scalar, Scalar],
            Returns::Scalar,
            Function::Plain(dynptr_read),
        ),
        Helper::new(
            202,
            "bpf_dynptr_write",
            &[Dynptr, Scalar, MemoryOrNull, SizeOrZero, Scalar],
            Returns::Scalar,
            Function::Plain(dynptr_write),
        ),
        Helper::new(
            203,
            "bpf_dynptr_data",
            &[Dynptr, Scalar, ConstantSize],
            Returns::DynptrMemoryOrNull,
            Function::Plain(dynptr_data),
        ),
    ]
};
