//! The exits as a Parquet file, with the columns of the comma-separated values: numbers as numbers, for DuckDB, Spark and the like.
//!
//! See: Apache Parquet format 2, parquet.thrift (logical types)

use super::{
    failed,
    rows::{Row, rows},
};
use crate::{
    Tape,
    error::{Cause, Place, Result},
};
use parquet::{
    data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter, writer::SerializedRowGroupWriter},
    schema::parser::parse_message_type,
};
use std::{
    fs::File,
    io::{self, Seek, Write},
    sync::Arc,
};

/// The columns, in the order of [`columns`](super::csv::COLUMNS). `gpa` is null where an exit is not about one.
pub const SCHEMA: &str = "message exits {
    required int64 exit (INTEGER(64,false));
    required int32 vcpu (INTEGER(32,false));
    required int64 time_us (INTEGER(64,false));
    required int64 rip (INTEGER(64,false));
    required binary isa (UTF8);
    required binary reason (UTF8);
    required int64 reason_code (INTEGER(64,false));
    required int64 info1 (INTEGER(64,false));
    required int64 info2 (INTEGER(64,false));
    optional int64 gpa (INTEGER(64,false));
    required int64 intr_info (INTEGER(64,false));
    required int64 error_code (INTEGER(64,false));
}";

/// Rows that are held before they are written.
const GROUP: usize = 1 << 16;

/// Writes the exits. A Parquet file ends with its index, so it is put together in a temporary file.
pub fn write(tape: &Tape, mut out: impl Write) -> Result<()> {
    let file = tempfile::tempfile().map_err(failed)?;
    let schema = Arc::new(parse_message_type(SCHEMA).map_err(broken)?);
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties).map_err(broken)?;
    let mut held = Vec::new();
    for row in rows(tape) {
        held.push(row?);
        if held.len() == GROUP {
            group(&mut writer, &held)?;
            held.clear();
        }
    }
    if !held.is_empty() {
        group(&mut writer, &held)?;
    }
    let mut file = writer.into_inner().map_err(broken)?;
    file.rewind().map_err(failed)?;
    io::copy(&mut file, &mut out).and_then(|_| out.flush()).map_err(failed)
}

fn broken(error: ParquetError) -> crate::Error {
    Cause::Io(io::Error::other(error)).at("the export", Place::File)
}

fn group(writer: &mut SerializedFileWriter<File>, rows: &[Row]) -> Result<()> {
    let mut group = writer.next_row_group().map_err(broken)?;
    numbers(&mut group, rows, |row| row.exit)?;
    let vcpus: Vec<i32> = rows.iter().map(|row| row.vcpu as i32).collect();
    let mut column = next(&mut group)?;
    column.typed::<Int32Type>().write_batch(&vcpus, None, None).map_err(broken)?;
    column.close().map_err(broken)?;
    numbers(&mut group, rows, |row| row.time)?;
    numbers(&mut group, rows, |row| row.rip)?;
    words(&mut group, rows, |row| &row.isa)?;
    words(&mut group, rows, |row| &row.reason)?;
    numbers(&mut group, rows, |row| row.code)?;
    numbers(&mut group, rows, |row| row.info1)?;
    numbers(&mut group, rows, |row| row.info2)?;
    let gpas: Vec<i64> = rows.iter().filter_map(|row| row.gpa).map(u64::cast_signed).collect();
    let present: Vec<i16> = rows.iter().map(|row| row.gpa.is_some().into()).collect();
    let mut column = next(&mut group)?;
    column.typed::<Int64Type>().write_batch(&gpas, Some(&present), None).map_err(broken)?;
    column.close().map_err(broken)?;
    numbers(&mut group, rows, |row| row.intr_info)?;
    numbers(&mut group, rows, |row| row.error_code)?;
    group.close().map_err(broken)?;
    Ok(())
}

fn next<'g>(
    group: &'g mut SerializedRowGroupWriter<'_, File>,
) -> Result<parquet::file::writer::SerializedColumnWriter<'g>> {
    let missing = || broken(ParquetError::General("the schema has fewer columns".into()));
    group.next_column().map_err(broken)?.ok_or_else(missing)
}

fn numbers(
    group: &mut SerializedRowGroupWriter<'_, File>,
    rows: &[Row],
    of: impl Fn(&Row) -> u64,
) -> Result<()> {
    let values: Vec<i64> = rows.iter().map(|row| of(row).cast_signed()).collect();
    let mut column = next(group)?;
    column.typed::<Int64Type>().write_batch(&values, None, None).map_err(broken)?;
    column.close().map_err(broken)
}

fn words(
    group: &mut SerializedRowGroupWriter<'_, File>,
    rows: &[Row],
    of: impl Fn(&Row) -> &str,
) -> Result<()> {
    let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(of(row))).collect();
    let mut column = next(group)?;
    column.typed::<ByteArrayType>().write_batch(&values, None, None).map_err(broken)?;
    column.close().map_err(broken)
}
