package fleet;

public interface Greeter {
    String greet(String name);
}
