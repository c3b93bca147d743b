//! Tables as the console answers them, and their bytes.

use bytes::{BufMut, BytesMut};

use crate::wire::{backend, put_cstr, put_message};

/// Type of a column, by which drivers read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `text`
    Text,
    /// `int4`
    Int4,
    /// `int8`
    Int8,
}

impl Type {
    /// Oid and size, as in pg_type.
    fn wire(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
        }
    }
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
}

/// A text column.
pub const fn text(name: &'static str) -> Column {
    Column { name, kind: Type::Text }
}

/// A column of small numbers.
pub const fn int4(name: &'static str) -> Column {
    Column { name, kind: Type::Int4 }
}

/// A column of numbers.
pub const fn int8(name: &'static str) -> Column {
    Column { name, kind: Type::Int8 }
}

/// One field; `None` is NULL.
pub type Field = Option<String>;

/// Makes a row of anything that can be displayed.
macro_rules! row {
    ($($field:expr),* $(,)?) => { vec![$($crate::admin::table::IntoField::field($field)),*] };
}
pub(crate) use row;

/// Values that can be put in a row.
pub trait IntoField {
    /// As text.
    fn field(self) -> Field;
}

macro_rules! displayed {
    ($($kind:ty),*) => {
        $(impl IntoField for $kind { fn field(self) -> Field { Some(self.to_string()) } })*
    };
}
displayed!(&str, String, u8, u16, u32, u64, usize, i64, i32);

impl IntoField for bool {
    fn field(self) -> Field {
        Some(u8::from(self).to_string())
    }
}

impl<T: IntoField> IntoField for Option<T> {
    fn field(self) -> Field {
        self.and_then(IntoField::field)
    }
}

/// Columns and rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Headings.
    pub columns: &'static [Column],
    /// As many fields each as there are columns.
    pub rows: Vec<Vec<Field>>,
}

/// Appends RowDescription.
pub fn put_description(out: &mut BytesMut, columns: &[Column]) {
    put_message(out, backend::ROW_DESCRIPTION, |out| {
        out.put_u16(u16::try_from(columns.len()).unwrap_or(u16::MAX));
        for column in columns {
            let (oid, size) = column.kind.wire();
            put_cstr(out, column.name.as_bytes());
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(oid);
            out.put_i16(size);
            out.put_i32(-1);
            out.put_u16(0);
        }
    });
}

/// Appends the rows; `binary` per column as Bind asked for them (empty: text).
pub fn put_rows(out: &mut BytesMut, table: &Table, binary: &[bool]) {
    let is_binary = |index: usize| match binary {
        [] => false,
        [all] => *all,
        each => each.get(index).copied().unwrap_or(false),
    };
    for row in &table.rows {
        put_message(out, backend::DATA_ROW, |out| {
            out.put_u16(u16::try_from(row.len()).unwrap_or(u16::MAX));
            for (index, (field, column)) in row.iter().zip(table.columns).enumerate() {
                match field {
                    None => out.put_i32(-1),
                    Some(text) if is_binary(index) => put_binary(out, column.kind, text),
                    Some(text) => put_field(out, text.as_bytes()),
                }
            }
        });
    }
}

fn put_field(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.put_slice(bytes);
}

fn put_binary(out: &mut BytesMut, kind: Type, text: &str) {
    match kind {
        Type::Text => put_field(out, text.as_bytes()),
        Type::Int4 => put_field(out, &text.parse().unwrap_or(i32::MAX).to_be_bytes()),
        Type::Int8 => put_field(out, &text.parse().unwrap_or(i64::MAX).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_encoded_in_either_format() {
        let table =
            Table { columns: const { &[text("a"), int8("b"), int4("c")] }, rows: vec![row!["x", 7_u64, None::<u32>]] };
        let mut out = BytesMut::new();
        put_rows(&mut out, &table, &[]);
        let fields = backend::data_row(&out[5..]).expect("row");
        assert_eq!(fields, [Some(&b"x"[..]), Some(b"7"), None]);
        out.clear();
        put_rows(&mut out, &table, &[true]);
        let fields = backend::data_row(&out[5..]).expect("row");
        assert_eq!(fields, [Some(&b"x"[..]), Some(&[0, 0, 0, 0, 0, 0, 0, 7]), None]);
    }
}
