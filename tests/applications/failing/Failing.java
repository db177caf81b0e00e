import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.SQLException;
import java.util.HashMap;
import java.util.Map;
import java.util.logging.FileHandler;
import java.util.logging.Level;
import java.util.logging.Logger;
import java.util.logging.SimpleFormatter;

/** HikariCP on PostgreSQL's JDBC driver, with java.util.logging (see ../README.md). */
public class Failing {
    private interface Request {
        void run() throws Exception;
    }

    private static final Map<String, String> options = new HashMap<>();
    private static Logger log;

    private static HikariDataSource made() {
        Map<String, String> of = System.getenv();
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl("jdbc:postgresql://" + of.get("PGHOST") + ":" + of.get("PGPORT") + "/" + of.get("PGDATABASE"));
        config.setUsername(of.get("PGUSER"));
        config.setPassword(of.get("PGPASSWORD"));
        config.setMaximumPoolSize(1);
        // It bounds the opening of a connection, too, which takes its time on a host at work.
        config.setConnectionTimeout(1000);
        return new HikariDataSource(config);
    }

    private static void serve(HikariDataSource pool) throws SQLException {
        try (Connection connection = pool.getConnection()) {
            connection.createStatement().execute("SELECT 1");
        }
    }

    private static void starve(HikariDataSource pool) throws SQLException {
        try (Connection kept = pool.getConnection()) {
            serve(pool);
        }
    }

    /** How many of them failed; each is logged as a web framework does. */
    private static int several(int number, Request request) {
        int failed = 0;
        for (int i = 0; i < number; i++) {
            try {
                request.run();
                log.info("200 /orders");
            } catch (Exception error) {
                failed += 1;
                log.log(Level.SEVERE, "500 /orders", error);
            }
        }
        return failed;
    }

    private static Object does(HikariDataSource pool, String name, String rest) {
        return switch (name) {
            case "serve" -> several(Integer.parseInt(rest), () -> serve(pool));
            case "starve" -> several(Integer.parseInt(rest), () -> starve(pool));
            case "begin" -> several(Integer.parseInt(rest), () -> made().close());
            case "say" -> {
                String[] words = rest.split(" ", 2);
                log.log(Level.parse(words[0].equals("DEBUG") ? "FINE" : words[0]), words[1]);
                yield "null";
            }
            default -> throw new IllegalArgumentException("no such command");
        };
    }

    public static void main(String[] arguments) throws Exception {
        for (int i = 0; i + 1 < arguments.length; i += 2) {
            options.put(arguments[i].substring(2), arguments[i + 1]);
        }
        log = Logger.getLogger(options.get("name"));
        log.setUseParentHandlers(false);
        log.setLevel(Level.ALL);
        FileHandler file = new FileHandler(options.get("log"), true);
        file.setFormatter(new SimpleFormatter());
        log.addHandler(file);
        HikariDataSource pool = made();
        System.out.println("{\"ready\":" + ProcessHandle.current().pid() + "}");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                String[] words = line.split(" ", 2);
                System.out.println("{\"did\":" + does(pool, words[0], words[1]) + "}");
            } catch (Exception error) {
                String said = error.toString().replaceAll("[\"\\\\\n]", " ");
                System.out.println("{\"failed\":\"" + said + "\"}");
            }
        }
        Runtime.getRuntime().halt(0);
    }
}
