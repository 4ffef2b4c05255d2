pub fn run(_: &crate::command_line::Options<'_>) -> u32 { crate::println!("hello"); crate::sched::sleep_ns(5_000_000); crate::println!("slept"); 0 }
