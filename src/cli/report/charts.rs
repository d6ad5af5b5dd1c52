//! SVG charts.

use aefusion_udfs::model::metadata::Epoch;
use datafusion::error::{DataFusionError, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::AsRangedCoord;
use plotters::prelude::*;

const SIZE: (u32, u32) = (560, 320);
const FONT: (&str, u32) = ("sans-serif", 13);
const BLUE: RGBColor = RGBColor(31, 102, 178);
const ORANGE: RGBColor = RGBColor(214, 106, 0);
const GREY: RGBColor = RGBColor(120, 120, 120);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on an empty area, and returns the SVG.
fn chart(draw: impl FnOnce(&Area<'_>) -> Result<(), Failed>) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    draw(&area).and_then(|()| Ok(area.present()?)).map_err(|e| DataFusionError::External(e.to_string().into()))?;
    drop(area);
    Ok(svg)
}

type Failed = Box<dyn std::error::Error>;

/// A chart with axes of the types `X` and `Y`.
type Sheet<'a, X, Y> = ChartContext<
    'a,
    SVGBackend<'a>,
    Cartesian2d<<X as AsRangedCoord>::CoordDescType, <Y as AsRangedCoord>::CoordDescType>,
>;

/// A chart with axes of the given ranges.
fn axes<'a, X: AsRangedCoord, Y: AsRangedCoord>(area: &Area<'a>, x: X, y: Y) -> Result<Sheet<'a, X, Y>, Failed> {
    Ok(ChartBuilder::on(area).margin(8).x_label_area_size(36).y_label_area_size(60).build_cartesian_2d(x, y)?)
}

/// Draws a line with a name for the legend.
fn line<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    points: impl IntoIterator<Item = (X::ValueType, Y::ValueType)>,
    color: RGBColor,
    name: String,
) -> Result<(), Failed>
where
    X: Ranged<ValueType: Clone + 'static>,
    Y: Ranged<ValueType: Clone + 'static>,
{
    chart
        .draw_series(LineSeries::new(points, color.stroke_width(2)))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    Ok(())
}

/// Draws the legend.
fn legend<'a, X: Ranged, Y: Ranged>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
) -> Result<(), Failed> {
    Ok(chart.configure_series_labels().background_style(WHITE).border_style(GREY).label_font(FONT).draw()?)
}

/// Range of the finite values, with a margin.
fn span(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.04).max(high.abs() * 1e-6).max(1e-9);
    low - margin..high + margin
}

fn number(value: u64) -> f64 {
    value as f64
}

/// Training loss and held-out loss of one stage, by epoch.
pub(super) fn loss(epochs: &[&Epoch]) -> Result<String> {
    let held_out: Vec<(f64, f64)> =
        epochs.iter().filter_map(|epoch| Some((number(epoch.epoch), epoch.held_out_loss?))).collect();
    let trained: Vec<(f64, f64)> = epochs.iter().map(|epoch| (number(epoch.epoch), epoch.loss)).collect();
    let best = epochs.iter().find(|epoch| epoch.is_best).map(|epoch| number(epoch.epoch));
    chart(|area| {
        let x = span(trained.iter().map(|(x, _)| *x));
        let y = span(trained.iter().chain(&held_out).map(|(_, y)| *y));
        let mut chart = axes(area, x, y.clone())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("epoch")
            .y_desc("loss")
            .label_style(FONT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        line(&mut chart, trained, BLUE, "training".to_owned())?;
        if !held_out.is_empty() {
            line(&mut chart, held_out, ORANGE, "held-out".to_owned())?;
        }
        if let Some(best) = best {
            chart.draw_series(LineSeries::new([(best, y.start), (best, y.end)], GREY))?;
        }
        legend(&mut chart)?;
        Ok(())
    })
}

/// Histogram of the errors, with the threshold. The last bar includes all larger errors.
pub(super) fn histogram(errors: &[f64], threshold: Option<f64>) -> Result<String> {
    const BARS: usize = 60;
    let mut sorted: Vec<f64> = errors.iter().copied().filter(|error| error.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let quantile =
        |share: usize| sorted.get((sorted.len() * share / 1000).min(sorted.len().saturating_sub(1))).copied();
    let most = quantile(995).unwrap_or(1.0).max(threshold.filter(|t| t.is_finite()).unwrap_or(0.0) * 1.2).max(1e-12);
    let width = most / BARS as f64;
    let mut counts = [0_u32; BARS];
    for error in &sorted {
        let bar = (1..BARS).rev().find(|bar| *error >= *bar as f64 * width).unwrap_or(0);
        counts[bar] += 1;
    }
    let highest = counts.iter().copied().max().unwrap_or(1).max(1);
    chart(|area| {
        let mut chart = axes(area, 0.0..most, 0..highest + highest / 20 + 1)?;
        chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("error").y_desc("rows").label_style(FONT).draw()?;
        let bar = |(i, count): (usize, &u32)| {
            let left = i as f64 * width;
            Rectangle::new([(left, 0), (left + width, *count)], BLUE.mix(0.7).filled())
        };
        chart.draw_series(counts.iter().enumerate().map(bar))?;
        if let Some(threshold) = threshold.filter(|threshold| *threshold <= most) {
            let top = highest + highest / 20 + 1;
            line(&mut chart, [(threshold, 0), (threshold, top)], ORANGE, format!("threshold {threshold:.4}"))?;
            legend(&mut chart)?;
        }
        Ok(())
    })
}

/// A curve in the unit square, with the line of a random ranking.
pub(super) fn unit_curve(points: &[(f64, f64)], chance: [(f64, f64); 2], x: &str, y: &str) -> Result<String> {
    chart(|area| {
        let mut chart = axes(area, 0.0..1.0, 0.0..1.02)?;
        chart.configure_mesh().light_line_style(TRANSPARENT).x_desc(x).y_desc(y).label_style(FONT).draw()?;
        chart.draw_series(LineSeries::new(chance, GREY))?;
        chart.draw_series(LineSeries::new(points.iter().copied(), BLUE.stroke_width(2)))?;
        Ok(())
    })
}

/// Codes on their first two principal components, with anomalies in orange.
pub(super) fn scatter(points: &[(f64, f64)], is_anomaly: &[bool]) -> Result<String> {
    chart(|area| {
        let x = span(points.iter().map(|(x, _)| *x));
        let y = span(points.iter().map(|(_, y)| *y));
        let mut chart = axes(area, x, y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("first component")
            .y_desc("second component")
            .label_style(FONT)
            .draw()?;
        let of = |wanted: bool| {
            points.iter().zip(is_anomaly).filter(move |(_, anomaly)| **anomaly == wanted).map(|(point, _)| *point)
        };
        chart.draw_series(of(false).map(|point| Circle::new(point, 2, BLUE.mix(0.35).filled())))?;
        chart.draw_series(of(true).map(|point| Circle::new(point, 3, ORANGE.mix(0.9).filled())))?;
        Ok(())
    })
}

/// Input and reconstruction of a row, column by column.
pub(super) fn row(input: &[f64], output: &[f64]) -> Result<String> {
    let points = |values: &[f64]| -> Vec<(f64, f64)> {
        let place = |(i, value): (usize, &f64)| ((i + 1) as f64, *value);
        values.iter().enumerate().map(place).filter(|(_, value)| value.is_finite()).collect()
    };
    let (input, output) = (points(input), points(output));
    chart(|area| {
        let x = span(input.iter().chain(&output).map(|(x, _)| *x));
        let y = span(input.iter().chain(&output).map(|(_, y)| *y));
        let mut chart = axes(area, x, y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("column")
            .y_desc("scaled value")
            .label_style(FONT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        line(&mut chart, input, BLUE, "input".to_owned())?;
        line(&mut chart, output, ORANGE, "reconstruction".to_owned())?;
        legend(&mut chart)?;
        Ok(())
    })
}
