//! The binary fairlead-cni: acts as the plugin it is called by.
//!
//! It has a C `main`, not Rust's: a plugin lives for a millisecond or two, and the standard library's start-up would
//! take 0.3 ms of that ([`kernel::start`]). What it relies on holds for glibc, which hands a program's arguments
//! to the standard library before `main`, and for which alone this project is linked.
#![no_main]
#![expect(unsafe_code, reason = "the name under which the C library looks for the program's beginning")]

#[cfg(not(target_env = "gnu"))]
compile_error!("the standard library learns a program's arguments before a C main from glibc alone");

// SAFETY: no other function of this program has the name, and it is the type that the C library expects: the two
// arguments that are not taken stay in their registers.
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    kernel::start::prepare();
    plugins::run(std::env::args_os()).into()
}
