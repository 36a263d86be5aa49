//! The functions of WASI 0.1 with what their parameters are, and the code that calls one of them for a program whose
//! memory was moved up: addresses are moved on the way in, and those that come back are moved down again.
//!
//! Owns no module: [`super::moved`] says where things are.

use wasm_encoder::{BlockType, Function, InstructionSink, MemArg, ValType};
use wasmparser::FuncType;

/// Buffers of one read or write that are passed on; what is beyond is for the program's next call, as with any
/// short read or write. As many as POSIX has (`IOV_MAX`).
const BUFFERS: i32 = 1024;

/// Where the moved list of buffers lies, 8 bytes each, in a page that is neither the program's nor the adapter's.
const BUFFER_LIST: u64 = 4096;

/// Where the number of arguments or variables, and their size, are asked for.
const SIZES: i32 = 256;

/// One function: its name, its parameters, and whether it returns an error number (else nothing).
///
/// Of the parameters `i` is an `i32` and `l` an `i64` that are passed on; `p` is an address; `v` is the address of a list
/// of buffers, whose length `n` follows; `a` is the address of a list of addresses that is filled in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) name: &'static str,
    params: &'static str,
    returns: bool,
}

/// All of them, after `wasi_snapshot_preview1.witx`.
pub(super) const CALLS: [Call; 46] = [
    call("args_get", "ap"),
    call("args_sizes_get", "pp"),
    call("clock_res_get", "ip"),
    call("clock_time_get", "ilp"),
    call("environ_get", "ap"),
    call("environ_sizes_get", "pp"),
    call("fd_advise", "illi"),
    call("fd_allocate", "ill"),
    call("fd_close", "i"),
    call("fd_datasync", "i"),
    call("fd_fdstat_get", "ip"),
    call("fd_fdstat_set_flags", "ii"),
    call("fd_fdstat_set_rights", "ill"),
    call("fd_filestat_get", "ip"),
    call("fd_filestat_set_size", "il"),
    call("fd_filestat_set_times", "illi"),
    call("fd_pread", "ivnlp"),
    call("fd_prestat_dir_name", "ipi"),
    call("fd_prestat_get", "ip"),
    call("fd_pwrite", "ivnlp"),
    call("fd_read", "ivnp"),
    call("fd_readdir", "ipilp"),
    call("fd_renumber", "ii"),
    call("fd_seek", "ilip"),
    call("fd_sync", "i"),
    call("fd_tell", "ip"),
    call("fd_write", "ivnp"),
    call("path_create_directory", "ipi"),
    call("path_filestat_get", "iipip"),
    call("path_filestat_set_times", "iipilli"),
    call("path_link", "iipiipi"),
    call("path_open", "iipiillip"),
    call("path_readlink", "ipipip"),
    call("path_remove_directory", "ipi"),
    call("path_rename", "ipiipi"),
    call("path_symlink", "piipi"),
    call("path_unlink_file", "ipi"),
    call("poll_oneoff", "ppip"),
    Call { name: "proc_exit", params: "i", returns: false },
    call("proc_raise", "i"),
    call("random_get", "pi"),
    call("sched_yield", ""),
    call("sock_accept", "iip"),
    call("sock_recv", "ivnipp"),
    call("sock_send", "ivnip"),
    call("sock_shutdown", "ii"),
];

const fn call(name: &'static str, params: &'static str) -> Call {
    Call { name, params, returns: true }
}

impl Call {
    /// The function of this name and type.
    pub(super) fn of(name: &str, ty: &FuncType) -> Option<Self> {
        CALLS.iter().find(|c| c.name == name && c.has_type(ty)).copied()
    }

    fn has_type(&self, ty: &FuncType) -> bool {
        let params =
            self.params.chars().map(|p| if p == 'l' { wasmparser::ValType::I64 } else { wasmparser::ValType::I32 });
        params.eq(ty.params().iter().copied())
            && ty.results() == &[wasmparser::ValType::I32][..usize::from(self.returns)]
    }

    /// Whether it is passed any address.
    pub(super) fn has_addresses(&self) -> bool {
        self.params.contains(['p', 'v', 'a'])
    }

    /// The function that says how long the list is that this one fills in.
    pub(super) fn sizes(&self) -> Option<&'static str> {
        match self.name {
            "args_get" => Some("args_sizes_get"),
            "environ_get" => Some("environ_sizes_get"),
            _ => None,
        }
    }
}

/// What a call's code refers to.
pub(super) struct Refers {
    /// The function itself, as imported.
    pub(super) import: u32,
    /// Its [`Call::sizes`], as imported.
    pub(super) sizes: Option<u32>,
    /// A function that moves an address up.
    pub(super) up: u32,
    /// By how many bytes.
    pub(super) by: i32,
}

/// A function of the same type, for a program that was moved up.
pub(super) fn moved(call: &Call, refers: &Refers) -> Function {
    // Three numbers, whatever for.
    let mut function = Function::new([(3, ValType::I32)]);
    let at = |param| call.params.find(param).map(|n| n as u32);
    let locals = [0, 1, 2].map(|n| call.params.len() as u32 + n);
    let mut code = function.instructions();
    if let Some(list) = at('v') {
        move_buffers(&mut code, list, locals, refers.up);
    }
    for (n, param) in (0..).zip(call.params.chars()) {
        match param {
            'v' => code.i32_const(BUFFER_LIST as i32),
            'p' | 'a' => code.local_get(n).call(refers.up),
            _ => code.local_get(n),
        };
    }
    code.call(refers.import);
    if let (Some(list), Some(sizes)) = (at('a'), refers.sizes) {
        move_back(&mut code, list, locals, sizes, refers);
    }
    code.end();
    function
}

fn word(offset: u64) -> MemArg {
    MemArg { offset, align: 2, memory_index: 0 }
}

/// Makes a list of the moved buffers, and the length one that fits.
fn move_buffers(code: &mut InstructionSink<'_>, list: u32, [from, at, entry]: [u32; 3], up: u32) {
    let length = list + 1;
    code.local_get(length).i32_const(BUFFERS).local_get(length).i32_const(BUFFERS).i32_lt_u().select();
    code.local_set(length).local_get(list).call(up).local_set(from);
    code.block(BlockType::Empty).loop_(BlockType::Empty);
    code.local_get(at).local_get(length).i32_const(3).i32_shl().i32_ge_u().br_if(1);
    code.local_get(from).local_get(at).i32_add().local_set(entry);
    code.local_get(at).local_get(entry).i32_load(word(0)).call(up).i32_store(word(BUFFER_LIST));
    code.local_get(at).local_get(entry).i32_load(word(4)).i32_store(word(BUFFER_LIST + 4));
    code.local_get(at).i32_const(8).i32_add().local_set(at);
    code.br(0).end().end();
}

/// With an error number on the stack: where it is none, moves the addresses of a list down.
fn move_back(code: &mut InstructionSink<'_>, list: u32, [error, left, at]: [u32; 3], sizes: u32, refers: &Refers) {
    code.local_tee(error).if_(BlockType::Empty).local_get(error).return_().end();
    code.i32_const(SIZES).i32_const(SIZES + 4).call(sizes);
    code.local_tee(error).if_(BlockType::Empty).local_get(error).return_().end();
    code.i32_const(SIZES).i32_load(word(0)).local_set(left);
    code.local_get(list).call(refers.up).local_set(at);
    code.block(BlockType::Empty).loop_(BlockType::Empty);
    code.local_get(left).i32_eqz().br_if(1);
    code.local_get(at).local_get(at).i32_load(word(0)).i32_const(refers.by).i32_sub().i32_store(word(0));
    code.local_get(at).i32_const(4).i32_add().local_set(at);
    code.local_get(left).i32_const(1).i32_sub().local_set(left);
    code.br(0).end().end();
    code.i32_const(0);
}
