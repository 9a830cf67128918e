package fleet;

public interface Clock {
    long now();
}
