//! The plot: one horizontal bar per subject for CPU per request at 32 connections and p50 at one.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::rounds::Measured;

const BAR: i32 = 22;
const LEFT: i32 = 330;
const RIGHT: i32 = 90;
const WIDTH: u32 = 1000;
const TOP: i32 = 34;

/// Writes an SVG.
pub fn draw(file: &Path, measured: &[Measured]) -> Result<()> {
    let at = |connections: usize| measured.iter().filter(move |m| m.connections == connections);
    let cpu: Vec<(String, f64)> = at(32).map(|m| (m.name.clone(), m.cpu_us().0)).collect();
    let p50: Vec<(String, f64)> = at(1).map(|m| (m.name.clone(), m.p50_us())).collect();
    let height = 2 * TOP + 20 + BAR * (cpu.len() + p50.len()) as i32 + 20;
    let area = SVGBackend::new(file, (WIDTH, height.cast_unsigned())).into_drawing_area();
    let draw = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        area.fill(&WHITE)?;
        chart(&area, 0, "CPU per request at 32 connections, us (less is better)", &cpu)?;
        chart(&area, TOP + 20 + BAR * cpu.len() as i32, "p50 at one connection, us (less is better)", &p50)?;
        area.present()
    };
    draw().map_err(|e| anyhow!("cannot draw {}: {e}", file.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn chart(
    area: &Area<'_>,
    top: i32,
    title: &str,
    bars: &[(String, f64)],
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let most = bars.iter().map(|b| b.1).fold(1.0, f64::max);
    let room = f64::from(WIDTH.cast_signed() - LEFT - RIGHT);
    area.draw(&Text::new(title.to_owned(), (10, top + 10), ("sans-serif", 16).into_font()))?;
    for (n, (name, value)) in bars.iter().enumerate() {
        let y = top + TOP + BAR * n as i32;
        let end = LEFT + (room * value / most) as i32;
        let colour = if name.starts_with("marcato") || name.starts_with("health") {
            RGBColor(20, 92, 158)
        } else {
            RGBColor(150, 150, 150)
        };
        area.draw(&Rectangle::new([(LEFT, y), (end, y + BAR - 6)], colour.filled()))?;
        area.draw(&Text::new(name.clone(), (10, y + 1), ("sans-serif", 13).into_font()))?;
        area.draw(&Text::new(format!("{value:.0}"), (end + 6, y + 1), ("sans-serif", 13).into_font()))?;
    }
    Ok(())
}
