//! A program's memory moved up by a few pages, which become the adapter's.
//!
//! The adapter between WASI 0.1 and 0.2 lives in the memory of the program that it serves, and needs two pages of it: at
//! its first call it takes them with `memory.grow`, unless the program exports a function to allocate them. Programs do
//! not expect that. Go's allocator notes at start-up where memory ends and takes all that grows there for its own; older
//! wasi-libc takes what is there at its first allocation. Both overwrite the adapter's state then. Making the memory
//! larger from the start changes nothing: either takes that for its own as well.
//!
//! So the pages come first, where no program looks: its address 0 becomes the first byte behind them. What carries an
//! address is rewritten as the module is: loads and stores by their constant offset, which costs nothing at run
//! time, data by where it goes, `memory.size` and `memory.grow` by the number of pages, and each function of WASI by a
//! function of ours that moves the addresses that it is passed. All else is the same, traps out of bounds
//! included.

use std::collections::HashMap;

use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as ADAPTER_NAME;
use wasm_encoder::reencode::{self, Reencode, utils};
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataSection, ExportKind, ExportSection, Function, FunctionSection,
    GlobalSection, GlobalType, MemArg, MemoryType, Module, SectionId, TypeSection, ValType,
};
use wasmparser::{CompositeInnerType, Operator, Parser, Payload, SubType, TypeRef};

use super::calls::{Call, Refers, moved};

/// Pages that come first: one for lists that are moved, and the adapter's two, of which none is at address 0.
const PAGES: u32 = 3;
const PAGE: u32 = 1 << 16;
/// By how much every address moves.
const BY: u32 = PAGES * PAGE;
/// Pages that a memory of 32 bits may have.
const MOST_PAGES: u64 = 1 << 16;

/// What the adapter allocates with, as `wit-component` names it: for the adapter alone.
const ALLOCATE: &str = "cabi_realloc_adapter";
/// Names of a program's own allocator, which the adapter uses where there is one.
const OWN_ALLOCATORS: [&str; 4] = [ALLOCATE, "cabi_realloc", "canonical_abi_realloc", "cm32p2_realloc"];

/// Why a module stays as it is, although it looked like one to move.
#[derive(Debug, thiserror::Error)]
#[error("a load or store is so far from its address that it cannot be moved")]
struct TooFar;

type Result<T> = std::result::Result<T, reencode::Error<TooFar>>;

/// The module with its memory moved up. `None` where there is no need, for it has an allocator to offer; and where it is
/// nothing that the adapter takes: whoever wraps it says why.
///
/// Takes modules that are valid.
pub(super) fn move_up(module: &[u8]) -> Option<Vec<u8>> {
    let plan = Plan::of(module).ok()??;
    let mut out = Module::new();
    Mover { plan, naming: false }.parse_core_module(&mut out, Parser::new(0), module).ok()?;
    Some(out.finish())
}

/// What is where in the module as it is, and so in the one to come.
#[derive(Default)]
struct Plan {
    replaced: Vec<Replaced>,
    /// Imported functions by name.
    imports: HashMap<&'static str, u32>,
    /// How many there are; ours come after.
    types: u32,
    functions: u32,
    globals: u32,
}

/// An import that is called by a function of ours.
struct Replaced {
    import: u32,
    ty: u32,
    call: Call,
}

impl Plan {
    fn of(module: &[u8]) -> wasmparser::Result<Option<Self>> {
        let mut plan = Self::default();
        let mut types = Vec::new();
        let (mut defined, mut memories) = (0, Vec::new());
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::TypeSection(section) => {
                    for group in section {
                        types.extend(group?.into_types());
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        if !plan.import(&import?, &types) {
                            return Ok(None);
                        }
                    }
                }
                Payload::FunctionSection(section) => defined = section.count(),
                Payload::MemorySection(section) => memories = section.into_iter().collect::<wasmparser::Result<_>>()?,
                Payload::GlobalSection(section) => plan.globals = section.count(),
                Payload::ExportSection(section) => {
                    for export in section {
                        if OWN_ALLOCATORS.contains(&export?.name) {
                            return Ok(None);
                        }
                    }
                }
                // It has calls of its own, with addresses that nobody here knows of.
                Payload::CustomSection(section) if section.name().starts_with("component-type") => return Ok(None),
                _ => {}
            }
        }
        plan.types = types.len() as u32;
        plan.functions += defined;
        let fits = matches!(memories[..], [memory] if can_move(&memory));
        let mut sizes = plan.replaced.iter().filter_map(|r| r.call.sizes());
        let complete = defined > 0 && sizes.all(|name| plan.imports.contains_key(name));
        Ok((fits && complete).then_some(plan))
    }

    /// Takes an import in. False when it is none that the adapter has.
    fn import(&mut self, import: &wasmparser::Import<'_>, types: &[SubType]) -> bool {
        let TypeRef::Func(ty) = import.ty else { return false };
        let Some(CompositeInnerType::Func(signature)) = types.get(ty as usize).map(|t| &t.composite_type.inner) else {
            return false;
        };
        let Some(call) = Call::of(import.name, signature).filter(|_| import.module == ADAPTER_NAME) else {
            return false;
        };
        self.imports.insert(call.name, self.functions);
        if call.has_addresses() {
            self.replaced.push(Replaced { import: self.functions, ty, call });
        }
        self.functions += 1;
        true
    }

    /// The function that moves an address up.
    const fn up(&self) -> u32 {
        self.functions
    }

    /// The one that grows the memory.
    const fn grow(&self) -> u32 {
        self.functions + 1
    }

    /// The one that the adapter allocates with.
    const fn allocate(&self) -> u32 {
        self.functions + 2
    }

    /// The one in place of an import.
    fn in_place_of(&self, import: u32) -> Option<u32> {
        let at = self.replaced.iter().position(|r| r.import == import)?;
        Some(self.functions + 3 + at as u32)
    }

    /// The global that says where the adapter's pages are free.
    const fn free(&self) -> u32 {
        self.globals
    }

    /// Those that keep what follows an address on the stack.
    const fn kept(&self) -> [u32; 2] {
        [self.globals + 1, self.globals + 2]
    }
}

/// Whether there is room, and it is a memory that the adapter can use.
fn can_move(memory: &wasmparser::MemoryType) -> bool {
    let plain = !memory.memory64 && !memory.shared && memory.page_size_log2.is_none();
    plain && memory.initial + u64::from(PAGES) <= MOST_PAGES
}

struct Mover {
    plan: Plan,
    /// Among the names of functions, which keep theirs.
    naming: bool,
}

impl Mover {
    /// An instruction, and what it becomes.
    fn translate(&mut self, operator: Operator<'_>, function: &mut Function) -> Result<()> {
        let [first, second] = self.plan.kept();
        let up = self.plan.up();
        let mut code = function.instructions();
        match operator {
            Operator::MemorySize { .. } => drop(code.memory_size(0).i32_const(PAGES as i32).i32_sub()),
            Operator::MemoryGrow { .. } => drop(code.call(self.plan.grow())),
            Operator::MemoryFill { .. } => {
                code.global_set(second).global_set(first).call(up).global_get(first).global_get(second).memory_fill(0);
            }
            Operator::MemoryInit { data_index, .. } => {
                code.global_set(second).global_set(first).call(up).global_get(first).global_get(second);
                code.memory_init(0, data_index);
            }
            Operator::MemoryCopy { .. } => {
                code.global_set(second).call(up).global_set(first);
                code.call(up).global_get(first).global_get(second).memory_copy(0, 0);
            }
            other => drop(function.instruction(&self.instruction(other)?)),
        }
        Ok(())
    }

    fn moved_offset(&mut self, offset: wasmparser::ConstExpr<'_>) -> Result<ConstExpr> {
        let mut operators = offset.get_operators_reader();
        if let Operator::I32Const { value } = operators.read()?
            && operators.is_end_then_eof()
        {
            // One constant stays one: only such data is mapped from the code's file. Beyond the end is a trap before
            // and after.
            return Ok(ConstExpr::i32_const((value as u32).saturating_add(BY) as i32));
        }
        Ok(self.const_expr(offset)?.with_i32_const(BY as i32).with_i32_add())
    }
}

impl Reencode for Mover {
    type Error = TooFar;

    fn function_index(&mut self, function: u32) -> Result<u32> {
        let replaced = if self.naming { None } else { self.plan.in_place_of(function) };
        Ok(replaced.unwrap_or(function))
    }

    fn custom_name_section(&mut self, section: wasmparser::NameSectionReader<'_>) -> Result<wasm_encoder::NameSection> {
        self.naming = true;
        let names = utils::custom_name_section(self, section);
        self.naming = false;
        names
    }

    fn mem_arg(&mut self, arg: wasmparser::MemArg) -> Result<MemArg> {
        let mut arg = utils::mem_arg(self, arg)?;
        arg.offset += u64::from(BY);
        if arg.offset > u64::from(u32::MAX) {
            return Err(reencode::Error::UserError(TooFar));
        }
        Ok(arg)
    }

    fn memory_type(&mut self, ty: wasmparser::MemoryType) -> Result<MemoryType> {
        let mut ty = utils::memory_type(self, ty);
        ty.minimum += u64::from(PAGES);
        // Where there are no more pages growth fails, as it may at any time.
        ty.maximum = ty.maximum.map(|most| (most + u64::from(PAGES)).min(MOST_PAGES));
        Ok(ty)
    }

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Result<()> {
        utils::parse_type_section(self, types, section)?;
        types.ty().function([ValType::I32], [ValType::I32]);
        types.ty().function([ValType::I32; 4], [ValType::I32]);
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<()> {
        utils::parse_function_section(self, functions, section)?;
        functions.function(self.plan.types).function(self.plan.types).function(self.plan.types + 1);
        for replaced in &self.plan.replaced {
            functions.function(replaced.ty);
        }
        Ok(())
    }

    fn parse_global_section(
        &mut self,
        globals: &mut GlobalSection,
        section: wasmparser::GlobalSectionReader<'_>,
    ) -> Result<()> {
        utils::parse_global_section(self, globals, section)?;
        our_globals(globals);
        Ok(())
    }

    /// A module without globals has no section for them, but exports.
    fn intersperse_section_hook(
        &mut self,
        module: &mut Module,
        _: Option<SectionId>,
        before: Option<SectionId>,
    ) -> Result<()> {
        if self.plan.globals == 0 && before == Some(SectionId::Export) {
            let mut globals = GlobalSection::new();
            our_globals(&mut globals);
            module.section(&globals);
        }
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Result<()> {
        utils::parse_export_section(self, exports, section)?;
        exports.export(ALLOCATE, ExportKind::Func, self.plan.allocate());
        Ok(())
    }

    fn parse_code_section(&mut self, code: &mut CodeSection, section: wasmparser::CodeSectionReader<'_>) -> Result<()> {
        utils::parse_code_section(self, code, section)?;
        code.function(&up()).function(&grow()).function(&allocate(self.plan.free()));
        for Replaced { import, call, .. } in &self.plan.replaced {
            let sizes = call.sizes().and_then(|name| self.plan.imports.get(name)).copied();
            code.function(&moved(call, &Refers { import: *import, sizes, up: self.plan.up(), by: BY as i32 }));
        }
        Ok(())
    }

    fn parse_function_body(&mut self, code: &mut CodeSection, body: wasmparser::FunctionBody<'_>) -> Result<()> {
        let mut function = self.new_function_with_parsed_locals(&body)?;
        let mut reader = body.get_operators_reader()?;
        while !reader.eof() {
            self.translate(reader.read()?, &mut function)?;
        }
        code.function(&function);
        Ok(())
    }

    fn parse_data(&mut self, data: &mut DataSection, datum: wasmparser::Data<'_>) -> Result<()> {
        match datum.kind {
            wasmparser::DataKind::Active { offset_expr, .. } => {
                data.active(0, &self.moved_offset(offset_expr)?, datum.data.iter().copied());
            }
            wasmparser::DataKind::Passive => drop(data.passive(datum.data.iter().copied())),
        }
        Ok(())
    }
}

fn our_globals(globals: &mut GlobalSection) {
    for value in [PAGE, 0, 0] {
        let ty = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
        globals.global(ty, &ConstExpr::i32_const(value as i32));
    }
}

/// An address, moved up. One that is too large for that becomes the largest, behind every memory that can be.
fn up() -> Function {
    let mut function = Function::new([]);
    let mut code = function.instructions();
    code.local_get(0).i32_const(BY as i32).i32_add().i32_const(-1);
    code.local_get(0).i32_const((u32::MAX - BY) as i32).i32_le_u().select().end();
    function
}

/// The size before in pages, less those that are not the program's, or -1.
fn grow() -> Function {
    let mut function = Function::new([]);
    let mut code = function.instructions();
    code.local_get(0).memory_grow(0).local_tee(0).i32_const(-1).i32_eq();
    code.if_(BlockType::Empty).i32_const(-1).return_().end();
    code.local_get(0).i32_const(PAGES as i32).i32_sub().end();
    function
}

/// What the canonical ABI calls `realloc`, of old address, old size, alignment and size. Gives the adapter's pages away
/// one after the other; traps when there are no more, for then it is another adapter than this was made for.
fn allocate(free: u32) -> Function {
    let mut function = Function::new([]);
    let mut code = function.instructions();
    let [old, old_size, align, size] = [0, 1, 2, 3];
    code.local_get(old).local_get(old_size).i32_or().if_(BlockType::Empty).unreachable().end();
    code.global_get(free).local_get(align).i32_add().i32_const(1).i32_sub();
    code.i32_const(0).local_get(align).i32_sub().i32_and().local_tee(old);
    code.i32_const(BY as i32).i32_gt_u().if_(BlockType::Empty).unreachable().end();
    code.i32_const(BY as i32).local_get(old).i32_sub().local_get(size).i32_lt_u();
    code.if_(BlockType::Empty).unreachable().end();
    code.local_get(old).local_get(size).i32_add().global_set(free).local_get(old).end();
    function
}

#[cfg(test)]
mod tests;
