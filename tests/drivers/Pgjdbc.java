import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** pgjdbc: transactions, server-side prepared statements, batches, fetch size, COPY, cancel, LISTEN. */
public class Pgjdbc {
    static void check(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    static Connection connect() throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        // Prepare on the server at the second use.
        properties.setProperty("prepareThreshold", "2");
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/"
                + System.getenv("PGDATABASE");
        return DriverManager.getConnection(url, properties);
    }

    static int number(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getInt(1);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Connection connection = connect();
        try (Statement statement = connection.createStatement()) {
            statement.execute("drop table if exists pgjdbc");
            statement.execute("create table pgjdbc (id int primary key, name text)");
        }
        connection.setAutoCommit(false);
        try (PreparedStatement insert = connection.prepareStatement("insert into pgjdbc values (?, ?)")) {
            for (int id = 0; id < 10; id++) {
                insert.setInt(1, id);
                insert.setString(2, "x");
                insert.executeUpdate();
            }
            connection.commit();
            for (int id = 10; id < 1010; id++) {
                insert.setInt(1, id);
                insert.setString(2, "batch");
                insert.addBatch();
            }
            insert.executeBatch();
            connection.commit();
            insert.setInt(1, 1);
            insert.setString(2, "again");
            try {
                insert.executeUpdate();
                check(false, "a duplicate key");
            } catch (SQLException error) {
                check(error.getSQLState().equals("23505"), error.toString());
            }
            connection.rollback();
        }
        check(number(connection, "select count(*) from pgjdbc") == 1010, "rows");
        Savepoint savepoint = connection.setSavepoint();
        try (Statement statement = connection.createStatement()) {
            statement.executeUpdate("delete from pgjdbc");
        }
        connection.rollback(savepoint);
        connection.commit();

        // A portal with a row limit, within a transaction.
        try (PreparedStatement select = connection.prepareStatement("select id from pgjdbc order by id")) {
            select.setFetchSize(100);
            int count = 0;
            try (ResultSet rows = select.executeQuery()) {
                while (rows.next()) check(rows.getInt(1) == count++, "order");
            }
            check(count == 1010, "fetched");
        }
        connection.commit();
        connection.setAutoCommit(true);

        try (PreparedStatement select = connection.prepareStatement("select ?::int + 1")) {
            for (int n = 0; n < 20; n++) {
                select.setInt(1, n);
                try (ResultSet rows = select.executeQuery()) {
                    rows.next();
                    check(rows.getInt(1) == n + 1, "prepared");
                }
            }
        }
        connection.setReadOnly(true);
        check(number(connection, "select count(*) from pgjdbc") == 1010, "read-only");
        connection.setReadOnly(false);

        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        copy.copyIn("copy pgjdbc from stdin", new StringReader("5000\tcopied\n5001\tcopied\n"));
        StringWriter out = new StringWriter();
        check(copy.copyOut("copy pgjdbc to stdout", out) == 1012, "copied out");

        try (Statement slow = connection.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    slow.cancel();
                } catch (Exception ignored) {
                }
            });
            canceller.start();
            slow.execute("select pg_sleep(30)");
            check(false, "not cancelled");
        } catch (SQLException error) {
            check(error.getSQLState().equals("57014"), error.toString());
        }

        try (Connection listener = connect(); Statement listen = listener.createStatement();
                Statement notify = connection.createStatement()) {
            listen.execute("listen pgjdbc");
            notify.execute("notify pgjdbc, 'hello'");
            var heard = listener.unwrap(PGConnection.class).getNotifications(20_000);
            check(heard != null && heard.length == 1 && heard[0].getParameter().equals("hello"), "notified");
        }
        connection.close();
        System.out.println("ok");
    }
}
