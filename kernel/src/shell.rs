pub fn run() -> u32 { 0 }
