pub fn run(_: &crate::command_line::Options<'_>) -> u32 { 0 }
